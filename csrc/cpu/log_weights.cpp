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

// The largest weight counts as 1: no sum overflows, and none is 0.
template <class T>
void launch_as(const LogWeightFigures& args) {
  const T* const log_w = static_cast<const T*>(args.log_w);
  T largest = -INFINITY;
  bool known = args.rows > 0;  // mean of nothing: NaN
  for (int64_t k = 0; k < args.rows; ++k) {
    largest = log_w[k] > largest ? log_w[k] : largest;
    known &= !std::isnan(log_w[k]);
  }
  T *const log_mean = static_cast<T*>(args.log_mean), *const ess = static_cast<T*>(args.ess);
  if (!known || std::isinf(largest)) {  // as torch's logsumexp and softmax
    *log_mean = known ? largest : static_cast<T>(NAN);
    *ess = static_cast<T>(NAN);
    return;
  }
  const double top = largest, count = static_cast<double>(args.rows);
  double sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum, squares)
  for (int64_t k = 0; k < args.rows; ++k) {
    const double w = vector_exp(static_cast<double>(log_w[k]) - top);
    sum += w;
    squares += w * w;
  }
  *log_mean = static_cast<T>(top + std::log(sum / count));
  *ess = static_cast<T>(sum * sum / (count * squares));
}

}  // namespace

int64_t workspace_bytes(const NormalLogDensity&) { return 0; }
int64_t workspace_bytes(const LogWeights&) { return 0; }
int64_t workspace_bytes(const LogWeightFigures&) { return 0; }
void launch(const NormalLogDensity& args, cpu::Parallel parallel) {
  args.dtype == kFloat64 ? launch_as<double>(args, parallel) : launch_as<float>(args, parallel);
}
void launch(const LogWeights& args, cpu::Parallel) {
  args.dtype == kFloat64 ? launch_as<double>(args) : launch_as<float>(args);
}
void launch(const LogWeightFigures& args, cpu::Parallel) {
  args.dtype == kFloat64 ? launch_as<double>(args) : launch_as<float>(args);
}

}  // namespace ADE_ISA
}  // namespace ade
