// Sums over the units of a piecewise-linear layer that follow a chain's points: P_d and P_c of the bottom and
// G_{L-1} of the top (potentials/mlp.h) are those of the last point, with the terms of the units that have
// changed sides since (changes.h).
#pragma once

#include "cpu/mlp/tile.h"

namespace ade {
namespace ADE_ISA {
namespace mlp {

template <class T>
void Tile<T>::forget() {
  bottom_changes_.forget();
  top_changes_.forget();
}

// sums[d]: panel p of the d-th sum, all rows; table(d): that of its first register of columns, with `size`
// from one to the next.
template <class T>
template <class Sums, class Table>
void Tile<T>::sum_whole_rows(const Changes& changes, int dims, int64_t size, const Sums& sums,
                             const Table& table) {
  if (changes.whole_count() == 0) return;
  for (int d = 0; d < dims; ++d) {
    for (int j = 0; j < kRegisters; ++j) {
      T* const to = sums(d) + j * kLanes;
      subset_product(changes.whole_count(), changes.whole_bits(), changes.row_bytes(),
                     static_cast<int>(changes.row_bytes() * 8 / kSubsetTerms), table(d) + j * size,
                     [&](int i, V sum) { simd::store<T>(to + changes.whole(i) * kPanel<T>, sum); });
    }
  }
}

// A panel of z_2, beside those of P.
template <class T>
template <int D>
void Tile<T>::follow_bottom(int p, T* z) {
  const int64_t size = network_.bottom_table_size();
  T* sums[D + 1];
  for (int d = 0; d < D; ++d) sums[d] = bottom_panel(d, p);
  sums[D] = bottom_centre_ + p * panel_size();
  sum_whole_rows(
      bottom_changes_, D + 1, size, [&](int d) { return sums[d]; },
      [&](int d) { return network_.bottom + d * network_.bottom_size() + p * kRegisters * size; });
  const T* const weight = network_.forward[2] + static_cast<int64_t>(p) * columns(1) * kPanel<T>;
  const T* const bias = network_.bias[2] + p * kPanel<T>;
  const T step = T(1) - parameter_;
  for (int r = 0; r < rows_; ++r) {
    V sum[D + 1][kRegisters];
    for (int d = 0; d <= D; ++d) {
      for (int j = 0; j < kRegisters; ++j) sum[d][j] = simd::load(sums[d] + r * kPanel<T> + j * kLanes);
    }
    const int count = bottom_changes_.count(r);
    for (int i = 0; i < count; ++i) {
      const int k = bottom_changes_.unit(r, i);
      const T by = bottom_changes_.set(r, i) ? step : -step;
#pragma GCC unroll 4
      for (int j = 0; j < kRegisters; ++j) {
        const V w = simd::load(weight + k * kPanel<T> + j * kLanes);
#pragma GCC unroll 2
        for (int d = 0; d < D; ++d) sum[d][j] += (by * network_.weight1[k * D + d]) * w;
        sum[D][j] += (by * network_.centred_bias[k]) * w;
      }
    }
    for (int d = 0; count > 0 && d <= D; ++d) {
      for (int j = 0; j < kRegisters; ++j) simd::store<T>(sums[d] + r * kPanel<T> + j * kLanes, sum[d][j]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < kRegisters; ++j) {
      V total = sum[D][j];
#pragma GCC unroll 2
      for (int d = 0; d < D; ++d) total += (x[r * D + d] - network_.centre[d]) * sum[d][j];
      simd::store<T>(z + r * kPanel<T> + j * kLanes, simd::load(bias + j * kLanes) + total);
    }
  }
}

// Panel p of G_{L-1}.
template <class T>
T* Tile<T>::follow_top(int p) {
  T* const grad = top_grad_ + p * panel_size();
  const int units = columns(shape_.layers);
  const int64_t size = network_.top_table_size();
  sum_whole_rows(
      top_changes_, 1, size, [&](int) { return grad; },
      [&](int) { return network_.top + p * kRegisters * size; });
  const T* const weight = network_.backward[shape_.layers] + static_cast<int64_t>(p) * units * kPanel<T>;
  const T step = T(1) - parameter_;
  for (int r = 0; r < rows_; ++r) {
    const int count = top_changes_.count(r);
    if (count == 0) continue;
    V sum[kRegisters];
    for (int j = 0; j < kRegisters; ++j) sum[j] = simd::load(grad + r * kPanel<T> + j * kLanes);
    for (int i = 0; i < count; ++i) {
      const T by = top_changes_.set(r, i) ? step : -step;
      const T* const w = weight + top_changes_.unit(r, i) * kPanel<T>;
#pragma GCC unroll 4
      for (int j = 0; j < kRegisters; ++j) sum[j] += by * simd::load(w + j * kLanes);
    }
    for (int j = 0; j < kRegisters; ++j) simd::store<T>(grad + r * kPanel<T> + j * kLanes, sum[j]);
  }
  return grad;
}

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
