// Log-weights on the CPU: sums in double precision. Compiled once per instruction set (cpu/dispatch.cpp
// chooses).
#include "launch/log_weights.h"

#include "cpu/rows.h"
#include "cpu/vector_exp.h"

namespace ade {
namespace ADE_ISA {
namespace {

constexpr double kHalfLog2Pi = 0x1.d67f1c864beb5p-1;

template <class T>
void launch_as(const NormalLogDensity& args, cpu::Parallel parallel) {
  const T* const noise = static_cast<const T*>(args.noise);
  T* const log_q = static_cast<T*>(args.log_q);
  const int64_t cols = args.cols;
  const double shift = -kHalfLog2Pi * static_cast<double>(cols);
  parallel_for(parallel, args.rows, cols, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      double squares = 0;
#pragma omp simd reduction(+ : squares)
      for (int64_t d = 0; d < cols; ++d) {
        const double z = noise[b * cols + d];
        squares += z * z;
      }
      log_q[b] = static_cast<T>(shift - 0.5 * squares);
    }
  });
}

template <class T>
void launch_as(const LogWeights& args) {
  const T *const value = static_cast<const T*>(args.value), *const energy =
                                                                static_cast<const T*>(args.energy);
  const T* const log_q = static_cast<const T*>(args.log_q);
  T* const log_w = static_cast<T*>(args.log_w);
  const T normaliser = static_cast<T>(args.size * (kHalfLog2Pi - 0.5 * std::log(args.weight)));
#pragma omp simd
  for (int64_t k = 0; k < args.rows; ++k) log_w[k] = value[k] - energy[k] - log_q[k] - normaliser;
}

// Raises `top` to the largest of them; whether none is NaN.
template <class T>
bool largest(const T* log_w, int64_t count, double* top) {
  bool known = true;
  for (int64_t k = 0; k < count; ++k) {
    *top = log_w[k] > *top ? static_cast<double>(log_w[k]) : *top;
    known &= !std::isnan(log_w[k]);
  }
  return known;
}

struct Sums {
  double weights, squares;
};

// Of the weights to the power beta, the largest of which, exp(top), counts as 1: no sum overflows, and none
// is 0.
template <class T>
Sums sums_of(const T* log_w, int64_t count, double top, double beta) {
  double weights = 0, squares = 0;
#pragma omp simd reduction(+ : weights, squares)
  for (int64_t k = 0; k < count; ++k) {
    const double w = vector_exp(beta * (static_cast<double>(log_w[k]) - top));
    weights += w;
    squares += w * w;
  }
  return {weights, squares};
}

template <class T>
void launch_as(const LogWeightFigures& args) {
  const T* const log_w = static_cast<const T*>(args.log_w);
  double top = -INFINITY;
  const bool known = args.rows > 0 && largest(log_w, args.rows, &top);  // mean of nothing: NaN
  T *const log_mean = static_cast<T*>(args.log_mean), *const ess = static_cast<T*>(args.ess);
  if (!known || std::isinf(top)) {  // as torch's logsumexp and softmax
    *log_mean = known ? static_cast<T>(top) : static_cast<T>(NAN);
    *ess = static_cast<T>(NAN);
    return;
  }
  const double count = static_cast<double>(args.rows);
  const auto [sum, squares] = sums_of(log_w, args.rows, top, 1);
  *log_mean = static_cast<T>(top + std::log(sum / count));
  *ess = static_cast<T>(sum * sum / (count * squares));
}

template <class T>
void launch_as(const RenyiBound& args) {
  const T *const log_w = static_cast<const T*>(args.log_w), *const log_b = static_cast<const T*>(args.log_b);
  T *const dlog_w = static_cast<T*>(args.dlog_w), *const dlog_b = static_cast<T*>(args.dlog_b);
  double top = -INFINITY;
  bool known = args.rows > 0;
  known &= largest(log_w, args.rows, &top);
  known &= largest(log_b, args.others, &top);
  // The largest weight counts as its share; where it is 0 or infinite, the differences are NaN, as torch's.
  const auto powers = [&](const T* from, int64_t count, double share, T* to) {
    const double each = share / static_cast<double>(count);
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < count; ++k) {
      const double w = each * vector_exp(args.power * (static_cast<double>(from[k]) - top));
      to[k] = static_cast<T>(w);
      sum += w;
    }
    return sum;
  };
  double total = powers(log_w, args.rows, 1 - args.share, dlog_w);
  if (args.others > 0) total += powers(log_b, args.others, args.share, dlog_b);
  if (!known || std::isinf(top)) total = NAN;
  const T scale = static_cast<T>(1 / total);
  for (int64_t k = 0; k < args.rows; ++k) dlog_w[k] *= scale;
  for (int64_t k = 0; k < args.others; ++k) dlog_b[k] *= scale;
  *static_cast<T*>(args.bound) =
      static_cast<T>(known && std::isinf(top) ? top : top + std::log(total) / args.power);
}

// The effective sample size falls as beta rises.
template <class T>
void launch_as(const TemperedPower& args) {
  const T* const log_w = static_cast<const T*>(args.log_w);
  double top = -INFINITY;
  largest(log_w, args.rows, &top);
  const double step = args.most / static_cast<double>(args.levels);
  const auto suffices = [&](int64_t level) {
    const auto [sum, squares] = sums_of(log_w, args.rows, top, step * static_cast<double>(level));
    return sum * sum >= args.min_ess * static_cast<double>(args.rows) * squares;  // not where one is NaN
  };
  int64_t least = 0, most = args.levels + 1;  // the answer is least or between
  while (most - least > 1) {
    const int64_t level = (least + most) / 2;
    (suffices(level) ? least : most) = level;
  }
  *static_cast<T*>(args.power) = static_cast<T>(step * static_cast<double>(max_of(least, 1)));
}

}  // namespace

int64_t workspace_bytes(const NormalLogDensity&) { return 0; }
int64_t workspace_bytes(const LogWeights&) { return 0; }
int64_t workspace_bytes(const LogWeightFigures&) { return 0; }
int64_t workspace_bytes(const RenyiBound&) { return 0; }
int64_t workspace_bytes(const TemperedPower&) { return 0; }
void launch(const NormalLogDensity& args, cpu::Parallel parallel) {
  args.dtype == kFloat64 ? launch_as<double>(args, parallel) : launch_as<float>(args, parallel);
}
void launch(const LogWeights& args, cpu::Parallel) {
  args.dtype == kFloat64 ? launch_as<double>(args) : launch_as<float>(args);
}
void launch(const RenyiBound& args, cpu::Parallel) {
  args.dtype == kFloat64 ? launch_as<double>(args) : launch_as<float>(args);
}
void launch(const TemperedPower& args, cpu::Parallel) {
  args.dtype == kFloat64 ? launch_as<double>(args) : launch_as<float>(args);
}
void launch(const LogWeightFigures& args, cpu::Parallel) {
  args.dtype == kFloat64 ? launch_as<double>(args) : launch_as<float>(args);
}

}  // namespace ADE_ISA
}  // namespace ade
