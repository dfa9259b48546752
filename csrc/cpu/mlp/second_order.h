// Second-order sweeps of a tile: the vector-Jacobian product of its gradient and value (potentials/mlp.h).
#pragma once

#include "cpu/mlp/tile.h"

namespace ade {
namespace ADE_ISA {
namespace mlp {

// t_l from t_{l-1}; φ''_l G_l becomes φ''_l G_l ż_l. dw += Σ t_L, unless it follows from M.
template <class T>
void Tile<T>::tangent(int l) {
  if (by_bits(l)) return;
  const bool last = l == shape_.layers, bend = bends();
  const T* const in = l == 1 ? dgradient : tangent_[l - 1];
  const int64_t packed_panel = static_cast<int64_t>(columns(l - 1)) * kPanel<T>;
  for (int p = 0; p < panel_count(l); ++p) {
    multiply(in, l - 1, network_.forward[l] + p * packed_panel, zeros_, panel_);
    T* const t = tangent_[l] + p * panel_size();
    const T* const slope = slope_[l] + p * panel_size();
    T* const zeta_l = zeta_[l] + p * panel_size();
    V total[kRegisters] = {};
    for (int r = 0; r < rows_; ++r) {
      const uint32_t bits = linear() ? load_bits(l, p, r) : 0;
#pragma GCC unroll 4
      for (int j = 0; j < kRegisters; ++j) {
        const int64_t at = r * kPanel<T> + j * kLanes;
        const V zdot = simd::load(panel_ + at);
        const V t_l = mlp::tangent(zdot, linear() ? slope_from_bits(bits, j) : simd::load(slope + at));
        if (bend) simd::store<T>(zeta_l + at, simd::load(zeta_l + at) * zdot);
        if (last) {
          total[j] += t_l;
        } else {
          simd::store<T>(t + at, t_l);
        }
      }
    }
    if (last) add_to(sums->out + p * kPanel<T>, total);
  }
}

// ζ_l from ζ_{l+1}. db_l += Σ ζ_l; at the top, what the value's cotangent adds. By bits, ζ_L is without its
// factor w.
template <class T>
void Tile<T>::curvature(int l) {
  const bool last = l == shape_.layers, bend = bends(), bits_suffice = by_bits(l);
  const int64_t packed_panel = last ? 0 : static_cast<int64_t>(columns(l + 1)) * kPanel<T>;
  if (last && dvalue) {
    for (int r = 0; r < rows_; ++r) *sums->out_bias += dvalue[r];
  }
  for (int p = 0; p < panel_count(l); ++p) {
    if (!last) multiply(zeta_[l + 1], l + 1, network_.backward[l + 1] + p * packed_panel, zeros_, panel_);
    const T* const h = hidden_[l] + p * panel_size();
    const T* const slope = slope_[l] + p * panel_size();
    const T* const delta_l = delta_[l] + p * panel_size();
    T* const zeta_l = zeta_[l] + p * panel_size();
    V total[kRegisters] = {}, total_out[kRegisters] = {};
    for (int r = 0; r < rows_; ++r) {
      const uint32_t bits = linear() && (!last || bits_suffice) ? load_bits(l, p, r) : 0;
#pragma GCC unroll 4
      for (int j = 0; j < kRegisters; ++j) {
        const int64_t at = r * kPanel<T> + j * kLanes;
        V z = bend ? simd::load(zeta_l + at) : V{};
        if (!last) {
          z = zeta(z, linear() ? slope_from_bits(bits, j) : simd::load(slope + at), simd::load(panel_ + at));
        } else if (bits_suffice) {
          z = simd::broadcast<T>(dvalue[r]) * slope_from_bits(bits, j);
        } else if (dvalue) {
          const V df = simd::broadcast<T>(dvalue[r]);
          z += df * simd::load(delta_l + at);
          total_out[j] += df * simd::load(h + at);
        }
        simd::store<T>(zeta_l + at, z);
        total[j] += z;
      }
    }
    add_to(sums->bias[l] + p * kPanel<T>, total);
    if (last && dvalue && !bits_suffice) add_to(sums->out + p * kPanel<T>, total_out);
  }
}

// dW_l += δ_lᵀ t_{l-1} + ζ_lᵀ h_{l-1}: both sums in one pass over dW where both are there and dense.
template <class T>
void Tile<T>::weight_gradient(int l) {
  if (by_bits(l) && want.tangent) add_top_weight_gradient();
  const bool tangent = want.tangent && !by_bits(l);
  if (!tangent && !want.curvature) return;
  const T* const left = tangent ? delta_[l] : zeta_[l];
  const T* const right = tangent ? (l == 1 ? dgradient : tangent_[l - 1]) : (l == 1 ? x : hidden_[l - 1]);
  const int chunks = tangent && want.curvature ? 2 : 1;
  const int64_t next_left = chunks == 2 ? zeta_[l] - left : 0;
  const int64_t next_right = chunks == 2 ? (l == 1 ? x : hidden_[l - 1]) - right : 0;
  T* const sum = sums->weight[l];
  if (l == 1) {  // transposed: dW_1ᵀ [D, n_1]
    const int dim = shape_.dim;
    for (int p = 0; p < panel_count(1); ++p) {
      T* const c = sum + static_cast<int64_t>(p) * dim * kPanel<T>;
      product<T, 1, 0>(dim, {right, 1, dim, next_right}, {left + p * panel_size(), next_left}, chunks, rows_,
                       {c, kPanel<T>}, c);
    }
    return;
  }
  for (int q = 0; q < panel_count(l - 1); ++q) {
    for (int p = 0; p < panel_count(l); ++p) {
      T* const c = sum + (static_cast<int64_t>(q) * columns(l) + p * kPanel<T>)*kPanel<T>;
      product<T, 1, kPanel<T>>(kPanel<T>, {left + p * panel_size(), 1, kPanel<T>, next_left},
                               {right + q * panel_size(), next_right}, chunks, rows_, {c, kPanel<T>}, c);
    }
  }
}

template <class T>
void Tile<T>::add_top_weight_gradient() {
  const int l = shape_.layers, units = columns(l);
  const int groups = (rows_ + kSubsetTerms - 1) / kSubsetTerms;
  T* const sum = sums->weight[l];
  transpose_bits(bits_of_panel(l, 0, 0), bit_stride_, rows_, units, unit_bits_);
  for (int q = 0; q < panel_count(l - 1); ++q) {
    for (int j = 0; j < kRegisters; ++j) {
      tabulate(tangent_[l - 1] + q * panel_size() + j * kLanes, rows_, parameter_, subsets_);
      subset_product<T, true>(units, reinterpret_cast<const uint8_t*>(unit_bits_), sizeof(uint64_t), groups,
                              subsets_, sum + static_cast<int64_t>(q) * units * kPanel<T> + j * kLanes);
    }
  }
}

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
