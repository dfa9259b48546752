// The figures of an unroll on the CPU, one point of time after another: sums in double precision, in the
// order of the rows. Compiled once per instruction set (cpu/dispatch.cpp chooses).
#include "launch/figures.h"

#include "cpu/rows.h"
#include "steps/damped_leapfrog.h"

namespace ade {
namespace ADE_ISA {
namespace {

template <class T>
T norm_of(const T* row, int64_t size) {
  T square = 0;
  for (int64_t d = 0; d < size; ++d) square += row[d] * row[d];
  return std::sqrt(square);
}

// How much of [rows, cols] the clip changes: of rows by norm, of elements by value.
template <class T>
double clipped(const T* u, int64_t rows, int64_t cols, const ClipArgs& clip) {
  if (clip.mode == kClipNone || (u == nullptr && rows > 0)) return 0;  // of no rows: 0 / 0
  const T bound = static_cast<T>(clip.bound);
  const bool by_norm = clip.mode == kClipNorm;
  int64_t count = 0;
  if (by_norm) {
    for (int64_t b = 0; b < rows; ++b) count += norm_of(u + b * cols, cols) > bound;
  } else {
    for (int64_t i = 0; i < rows * cols; ++i) count += std::abs(u[i]) > bound;
  }
  return static_cast<double>(count) / static_cast<double>(by_norm ? rows : rows * cols);
}

template <class T>
const T* at(const void* data, int64_t first) {
  return data == nullptr ? nullptr : static_cast<const T*>(data) + first;
}

// ‖v_t‖ of row b.
template <class T>
T momentum_norm(const UnrollFigures& args, int64_t t, int64_t b) {
  const int64_t size = args.momentum_cols, row = b * size, all = args.rows * size;
  const T* const v = static_cast<const T*>(args.v);
  if (args.step == nullptr) return norm_of(v + t * all + row, size);
  if (t == 0) return norm_of(static_cast<const T*>(args.v0) + row, size);
  const T* const step = static_cast<const T*>(args.step) + (t - 1) * args.step_stride;
  const T *const before = v + (t - 1) * all + row, *const force =
                                                       static_cast<const T*>(args.force) + t * all + row;
  const T damping = static_cast<T>(args.damping);
  T square = 0;
  row_clip(args.grad_clip, force, size).visit([&](const auto& clip) {
    for (int64_t d = 0; d < size; ++d) {
      const T ended = damped_leapfrog::kick(before[d], clip(force[d]), T(0.5) * step[d], damping);
      square += ended * ended;
    }
  });
  return std::sqrt(square);
}

// The larger of both, and NaN where one is.
template <class T>
double larger(double largest, T value) {
  return value > largest || std::isnan(value) ? value : largest;
}

// Of x_t and v_t of all rows. NaN is kept, as by torch's means and largest.
template <class T>
void figures_at(const UnrollFigures& args, int64_t t, double (&found)[kFigures]) {
  const int64_t rows = args.rows;
  const T *const value = at<T>(args.value, t * rows), *const first_value = at<T>(args.value, 0);
  const T *const gradient = at<T>(args.gradient, t * rows * args.cols), *const gain =
                                                                            at<T>(args.log_det, t * rows);
  double largest = rows > 0 ? 0 : NAN;
  for (int64_t b = 0; b < rows; ++b) {
    found[kValue] += value[b];
    found[kGradNorm] += norm_of(gradient + b * args.cols, args.cols);
    const T log_det = gain == nullptr ? T(0) : gain[b];
    found[kLogDet] += log_det;
    if (args.v == nullptr) continue;
    const T norm = momentum_norm<T>(args, t, b);
    found[kMomentumNorm] += norm;
    if (!args.conserves) continue;
    const T first_norm = momentum_norm<T>(args, 0, b);
    const T energy = T(0.5) * norm * norm - value[b];
    const T error = energy - (T(0.5) * first_norm * first_norm - first_value[b]), log_ratio = log_det - error;
    found[kEnergy] += energy;
    found[kEnergyError] += error;
    found[kAcceptance] += std::exp(log_ratio > 0 ? T(0) : log_ratio);
    largest = larger(largest, std::abs(error));
  }
  for (int i = kValue; i <= kLogDet; ++i) found[i] /= static_cast<double>(rows);
  found[kEnergyErrorMax] = largest;
  found[kGradClipped] =
      clipped(at<T>(args.force, t * rows * args.momentum_cols), rows, args.momentum_cols, args.grad_clip);
}

template <class T>
void launch_as(const UnrollFigures& args, cpu::Parallel parallel) {
  const int64_t momenta = args.rows * args.momentum_cols,
                work = 8 * args.rows * (args.cols + args.momentum_cols);
  parallel_for(parallel, args.points, work, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      double found[kFigures] = {};
      figures_at<T>(args, t, found);
      for (int i = 0; i < kFigures; ++i)
        static_cast<T*>(args.table)[i * args.points + t] = static_cast<T>(found[i]);
    }
  });
  for (int64_t t = 0; t < args.drifts; ++t) {
    const T* const drifting = at<T>(args.drifting, t * momenta);
    static_cast<T*>(args.momentum_clipped)[t] =
        static_cast<T>(clipped(drifting, args.rows, args.momentum_cols, args.momentum_clip));
  }
}

template <class T>
void launch_as(const AdjointFigures& args) {
  T* const table = static_cast<T*>(args.table);
  for (int64_t t = 0; t < args.points; ++t) {
    const T *const norm = at<T>(args.norm, t * args.rows), *const other = at<T>(args.other, t * args.rows);
    double sum = 0, largest = args.rows > 0 ? 0 : NAN;
    for (int64_t b = 0; b < args.rows; ++b) {
      const T whole = other == nullptr ? norm[b] : std::hypot(norm[b], other[b]);
      sum += whole;
      largest = larger(largest, whole);
    }
    table[t] = static_cast<T>(sum / static_cast<double>(args.rows));
    table[args.points + t] = static_cast<T>(largest);
  }
}

}  // namespace

int64_t workspace_bytes(const UnrollFigures&) { return 0; }
int64_t workspace_bytes(const AdjointFigures&) { return 0; }
void launch(const UnrollFigures& args, cpu::Parallel parallel) {
  args.dtype == kFloat64 ? launch_as<double>(args, parallel) : launch_as<float>(args, parallel);
}
void launch(const AdjointFigures& args, cpu::Parallel) {
  args.dtype == kFloat64 ? launch_as<double>(args) : launch_as<float>(args);
}

}  // namespace ADE_ISA
}  // namespace ade
