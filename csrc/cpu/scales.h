// The scalings e^S of the generalized dynamics on the CPU: exponentials run by run, log-determinants, and
// cotangents.
#pragma once

#include "cpu/rows.h"
#include "cpu/vector_exp.h"

namespace ade {
namespace ADE_ISA {

inline bool is_shared(const ScaleArgs& scale) { return scale.data != nullptr && scale.row_stride == 0; }

// e^S [D] of a scale that the batch shares, computed once into `memory` [D]; null otherwise.
template <class A>
const A* shared_exponential(const ScaleArgs& scale, int64_t cols, A* memory, cpu::Parallel parallel) {
  if (!is_shared(scale)) return nullptr;
  const A* const s = static_cast<const A*>(scale.data);
  parallel_for(parallel, cols, 8, [=](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t col = begin; col < end; ++col) memory[col] = vector_exp(s[col]);
  });
  return memory;
}

// e^S, run by run.
template <class A>
class Exponential {
 public:
  Exponential(const ScaleArgs& scale, const A* shared, const Walk& walk)
      : s_(is_shared(scale) ? nullptr : static_cast<const A*>(scale.data)),
        is_shared_(shared != nullptr),
        shared_(shared, walk) {
    if (scale.data != nullptr) return;
    for (int64_t i = 0; i < kRun; ++i) run_[i] = 1;
  }
  // Valid until the next call.
  const A* of_run(int64_t col, int64_t at, int64_t size) {
    if (is_shared_) return shared_.at(col);
    if (s_ != nullptr) {
      const A* const s = s_ + at;
      A* const run = run_;
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) run[i] = vector_exp(s[i]);
    }
    return run_;
  }

 private:
  const A* const s_;
  const bool is_shared_;
  SharedRow<A> shared_;
  A run_[kRun];
};

// Σ S of a sample: its share of log|det|.
template <class A>
class LogDet {
 public:
  LogDet(const ScaleArgs& scale, int64_t cols)
      : s_(static_cast<const A*>(scale.data)),
        row_stride_(scale.row_stride),
        cols_(cols),
        shared_(is_shared(scale) ? sum(s_, cols) : A(0)) {}
  A of_row(int64_t row) const {
    return s_ == nullptr || row_stride_ == 0 ? shared_ : sum(s_ + row * row_stride_, cols_);
  }

 private:
  static A sum(const A* s, int64_t size) {
    A total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < size; ++i) total += s[i];
    return total;
  }

  const A* const s_;
  const int64_t row_stride_, cols_;
  const A shared_;
};

// The cotangent of S: `ds` of the update, run by run, and `times` the sample's dlog_det. Goes to dscale [B,
// D], or into the sum over the batch of a shared scale, or nowhere without one.
template <class A>
class ScaleCotangent {
 public:
  ScaleCotangent(const ScaleArgs& scale, void* dscale, const void* dlog_det, A times)
      : dscale_(scale.data == nullptr || is_shared(scale) ? nullptr : static_cast<A*>(dscale)),
        is_shared_(is_shared(scale)),
        dlog_det_(static_cast<const A*>(dlog_det)),
        times_(times) {}

  // The output to sum over the batch, for sum_over_rows: null unless the scale is shared.
  static A* summed(const ScaleArgs& scale, void* dscale) {
    return is_shared(scale) ? static_cast<A*>(dscale) : nullptr;
  }

  // A run of `size` elements from `at`, of `rows` rows from `row`; `sum` is where the run adds to the sum
  // over the batch.
  void take(int64_t row, int64_t rows, int64_t at, int64_t size, const A* ds, A* sum) const {
    const int64_t length = size / rows;
    for (int64_t r = 0; r < rows && (dscale_ != nullptr || is_shared_); ++r) {
      const A log_det_part = times_ * dlog_det_[row + r];
      const A* const from = ds + r * length;
      if (is_shared_) {
        A* const to = sum + r * length;
#pragma omp simd
        for (int64_t i = 0; i < length; ++i) to[i] += from[i] + log_det_part;
      } else {
        A* const to = dscale_ + at + r * length;
#pragma omp simd
        for (int64_t i = 0; i < length; ++i) to[i] = from[i] + log_det_part;
      }
    }
  }

 private:
  A* const dscale_;
  const bool is_shared_;
  const A* const dlog_det_;
  const A times_;
};

}  // namespace ADE_ISA
}  // namespace ade
