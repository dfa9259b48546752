// The one matrix product of this folder: one panel of C = start + A B, its accumulators in registers.
//
// A panel is kPanel columns of a matrix, stored row after row: [rows, kPanel], contiguous; a matrix of N
// columns is N / kPanel panels. Activations of a tile, packed weights and weight gradients are all stored so,
// which makes every access of the inner loop sequential. An element of C sums its terms in the order of k
// whatever the number of rows: a sample's result does not depend on the tile it is in.
#pragma once

#include "cpu/mlp/vectors.h"

namespace ade {
namespace ADE_ISA {
namespace mlp {

using simd::kPanel;

// A(m, k) of chunk c is data[c * chunk + m * row + k * step].
template <class T>
struct LeftFactor {
  const T* data;
  int64_t row, step, chunk;
};

// B(k, ·) of chunk c is data[c * chunk + k * kPanel ...].
template <class T>
struct RightFactor {
  const T* data;
  int64_t chunk;
};

// Row m of C is added to data[m * row ...]: zeros or a bias (row = 0), or C itself (row = kPanel).
template <class T>
struct Start {
  const T* data;
  int64_t row;
};

// M rows of the panel. RowStride and StepStride are those of A where they are known at compile time, else 0.
template <class T, int M, int RowStride, int StepStride>
__attribute__((noinline)) static void product_block(const LeftFactor<T>& a, const RightFactor<T>& b,
                                                    int chunks, int depth, const Start<T>& start, T* c) {
  constexpr int kLanes = simd::kLanes<T>, kRegisters = simd::kPanelRegisters<T>;
  const int64_t row = RowStride ? RowStride : a.row;
  const int64_t step = StepStride ? StepStride : a.step;
  simd::Vector<T> sum[M][kRegisters] = {};
  int chunk = 0;
  do {  // at least one term: a loop that may not run at all costs copies of every accumulator
    const T* a_k = a.data + chunk * a.chunk;
    const T* b_k = b.data + chunk * b.chunk;
    int k = 0;
    do {
      simd::Vector<T> b_row[kRegisters];
#pragma GCC unroll 4
      for (int j = 0; j < kRegisters; ++j) b_row[j] = simd::load(b_k + j * kLanes);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const simd::Vector<T> a_m = simd::broadcast<T>(a_k[m * row]);
#pragma GCC unroll 4
        for (int j = 0; j < kRegisters; ++j) sum[m][j] += a_m * b_row[j];
      }
      a_k += step;
      b_k += kPanel<T>;
    } while (++k < depth);
  } while (++chunk < chunks);
  // The start is added last: a long sum over many calls is then a sum of short ones, with less rounding.
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int j = 0; j < kRegisters; ++j) {
      const int64_t at = m * kPanel<T> + j * kLanes;
      simd::store<T>(c + at, simd::load(start.data + m * start.row + j * kLanes) + sum[m][j]);
    }
  }
}

template <class T, int M, int RowStride, int StepStride>
ADE_INLINE void product_block_of(int rows, const LeftFactor<T>& a, const RightFactor<T>& b, int chunks,
                                 int depth, const Start<T>& start, T* c) {
  if constexpr (M > 1) {
    if (rows < M)
      return product_block_of<T, M - 1, RowStride, StepStride>(rows, a, b, chunks, depth, start, c);
  }
  product_block<T, M, RowStride, StepStride>(a, b, chunks, depth, start, c);
}

// One panel of C, [rows, kPanel], with rows, chunks, depth >= 1: rows in blocks of nearly equal size, so that
// no block is left with too few accumulators to hide the latency of a multiply-add.
template <class T, int RowStride, int StepStride>
static void product(int rows, const LeftFactor<T>& a, const RightFactor<T>& b, int chunks, int depth,
                    const Start<T>& start, T* c) {
  const int64_t row = RowStride ? RowStride : a.row;
  const int blocks = (rows + simd::kBlockRows<T> - 1) / simd::kBlockRows<T>;
  for (int i = 0, m = 0; i < blocks; ++i) {
    const int size = (rows - m + blocks - i - 1) / (blocks - i);
    product_block_of<T, simd::kBlockRows<T>, RowStride, StepStride>(
        size, {a.data + m * row, a.row, a.step, a.chunk}, b, chunks, depth,
        {start.data + m * start.row, start.row}, c + m * kPanel<T>);
    m += size;
  }
}

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
