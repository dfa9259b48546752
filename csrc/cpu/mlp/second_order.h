// Second-order sweeps of a tile: the vector-Jacobian product of its gradient and value (potentials/mlp.h).
#pragma once

#include <cstring>

#include "cpu/mlp/tile.h"

namespace ade {
namespace ADE_ISA {
namespace mlp {

// t_l from t_{l-1}; φ''_l G_l becomes φ''_l G_l ż_l. dw += Σ t_L, unless it follows from M.
template <class T>
void Tile<T>::tangent(int l) {
  if (!use_.dgradient || by_bits(l) || (l == 1 && bottom_by_bits())) return;
  const bool from_bottom = l == 2 && bottom_by_bits();
  const bool last = l == shape_.layers, bend = bends();
  const T* const in = l == 1 ? dgradient : tangent_[l - 1];
  const int64_t packed_panel = static_cast<int64_t>(columns(l - 1)) * kPanel<T>;
  for (int p = 0; p < panel_count(l); ++p) {
    if (from_bottom) {
      shape_.dim == 1 ? bottom_tangent<1>(p, panel_) : bottom_tangent<2>(p, panel_);
    } else {
      multiply(in, l - 1, network_.forward[l] + p * packed_panel, zeros_, panel_);
    }
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
    if (last) add_to(sums_->out + p * kPanel<T>, total);
  }
}

template <class T>
template <int D>
void Tile<T>::bottom_tangent(int p, T* out) {
  for (int r = 0; r < rows_; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kRegisters; ++j) {
      const int64_t at = r * kPanel<T> + j * kLanes;
      V sum{};
#pragma GCC unroll 2
      for (int d = 0; d < D; ++d) sum += dgradient[r * D + d] * simd::load(bottom_panel(d, p) + at);
      simd::store<T>(out + at, sum);
    }
  }
}

// ζ_l from ζ_{l+1}, of a smooth φ. db_l += Σ ζ_l; at the top, what the value's cotangent adds.
template <class T>
void Tile<T>::curvature(int l) {
  const bool last = l == shape_.layers, bend = bends();
  const int64_t packed_panel = last ? 0 : static_cast<int64_t>(columns(l + 1)) * kPanel<T>;
  if (last && dvalue) {
    for (int r = 0; r < rows_; ++r) *sums_->out_bias += dvalue[r];
  }
  for (int p = 0; p < panel_count(l); ++p) {
    if (!last) multiply(zeta_[l + 1], l + 1, network_.backward[l + 1] + p * packed_panel, zeros_, panel_);
    const T* const h = hidden_[l] + p * panel_size();
    const T* const slope = slope_[l] + p * panel_size();
    const T* const delta_l = delta_[l] + p * panel_size();
    T* const zeta_l = zeta_[l] + p * panel_size();
    V total[kRegisters] = {}, total_out[kRegisters] = {};
    for (int r = 0; r < rows_; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < kRegisters; ++j) {
        const int64_t at = r * kPanel<T> + j * kLanes;
        V z = bend ? simd::load(zeta_l + at) : V{};
        if (!last) {
          z = zeta(z, simd::load(slope + at), simd::load(panel_ + at));
        } else if (dvalue) {
          const V df = simd::broadcast<T>(dvalue[r]);
          z += df * simd::load(delta_l + at);
          total_out[j] += df * simd::load(h + at);
        }
        simd::store<T>(zeta_l + at, z);
        total[j] += z;
      }
    }
    add_to(sums_->bias[l] + p * kPanel<T>, total);
    if (last && dvalue) add_to(sums_->out + p * kPanel<T>, total_out);
  }
}

// t_l + df h_l, l = 0 .. L, in the place of t_l; dw += Σ df h_L, unless it follows from M, and db += Σ df.
template <class T>
void Tile<T>::complete_direction() {
  for (int r = 0; r < rows_; ++r) {
    *sums_->out_bias += dvalue[r];
    for (int d = 0; d < shape_.dim; ++d) {
      const int at = r * shape_.dim + d;
      const T own = dvalue[r] * (bottom_by_bits() ? x[at] - network_.centre[d] : x[at]);
      dgradient[at] = use_.dgradient ? dgradient[at] + own : own;
    }
  }
  for (int l = 1; l <= shape_.layers; ++l) {
    if (by_bits(l) || (l == 1 && bottom_by_bits())) continue;
    const bool last = l == shape_.layers;
    for (int p = 0; p < panel_count(l); ++p) {
      const T* const h = hidden_[l] + p * panel_size();
      V total[kRegisters] = {};
      for (int r = 0; r < rows_; ++r) {
        for (int j = 0; j < kRegisters; ++j) {
          const int64_t at = r * kPanel<T> + j * kLanes;
          const V own = dvalue[r] * simd::load(h + at);
          if (last) {
            total[j] += own;
          } else {
            T* const t = tangent_[l] + p * panel_size() + at;
            simd::store<T>(t, use_.dgradient ? simd::load(t) + own : own);
          }
        }
      }
      if (last) add_to(sums_->out + p * kPanel<T>, total);
    }
  }
}

// db_l += Σ df δ_l, at the top without its factor w; at the bottom it follows from N_c.
template <class T>
void Tile<T>::add_bias_gradient(int l) {
  if (l == 1 && bottom_by_bits()) return;
  const bool top = by_bits(l);
  for (int p = 0; p < panel_count(l); ++p) {
    V total[kRegisters] = {};
    for (int r = 0; r < rows_; ++r) {
      const uint32_t bits = top ? load_bits(l, p, r) : 0;
      for (int j = 0; j < kRegisters; ++j) {
        const int64_t at = p * panel_size() + r * kPanel<T> + j * kLanes;
        total[j] += dvalue[r] * (top ? slope_from_bits(bits, j) : simd::load(delta_[l] + at));
      }
    }
    add_to(sums_->bias[l] + p * kPanel<T>, total);
  }
}

// dW_l += δ_lᵀ t_{l-1} + ζ_lᵀ h_{l-1}: both sums in one pass over dW where both are there and dense.
template <class T>
void Tile<T>::weight_gradient(int l) {
  if (homogeneous()) {
    if (l == shape_.layers) complete_direction();
    add_bias_gradient(l);
  }
  const bool top = by_bits(l), bottom = l <= 2 && bottom_by_bits();
  if (want.tangent && top) add_top_weight_gradient();
  if (want.tangent && bottom && l == 2) {
    add_bottom_weight_gradient();
  }
  const bool tangent = want.tangent && !top && !bottom;
  if (!tangent && !want.curvature) return;
  const T* const below = l == 1 ? x : hidden_[l - 1];
  const T* const left = tangent ? delta_[l] : zeta_[l];
  const T* const right = tangent ? (l == 1 ? dgradient : tangent_[l - 1]) : below;
  const int chunks = tangent && want.curvature ? 2 : 1;
  const int64_t next_left = chunks == 2 ? zeta_[l] - left : 0;
  const int64_t next_right = chunks == 2 ? below - right : 0;
  T* const sum = sums_->weight[l];
  if (l == 1) {
    const int dim = shape_.dim;
    for (int p = 0; p < panel_count(1); ++p) {
      T* const c = sum + static_cast<int64_t>(p) * dim * kPanel<T>;
      product<T, 1, 0>(dim, {right, 1, dim, next_right}, {left + p * panel_size(), next_left}, chunks, rows_,
                       {c, kPanel<T>}, c);
    }
    return;
  }
  // sum [m, n] += aᵀ b
  const auto add_product = [&](const T* a, int64_t next_a, int m, const T* b, int64_t next_b, int n) {
    for (int q = 0; q < n / kPanel<T>; ++q) {
      for (int p = 0; p < m / kPanel<T>; ++p) {
        T* const c = sum + (static_cast<int64_t>(q) * m + p * kPanel<T>)*kPanel<T>;
        product<T, 1, kPanel<T>>(kPanel<T>, {a + p * panel_size(), 1, kPanel<T>, next_a},
                                 {b + q * panel_size(), next_b}, chunks, rows_, {c, kPanel<T>}, c);
      }
    }
  };
  if (summed_transposed(shape_, l)) {
    add_product(right, next_right, columns(l - 1), left, next_left, columns(l));
  } else {
    add_product(left, next_left, columns(l), right, next_right, columns(l - 1));
  }
}

template <class T>
void Tile<T>::add_unit_product(int units, T* to) {
  const int groups = (rows_ + kSubsetTerms - 1) / kSubsetTerms;
  subset_product(units, reinterpret_cast<const uint8_t*>(unit_bits_), sizeof(uint64_t), groups, subsets_,
                 [&](int unit, V sum) {
                   T* const at = to + unit * kPanel<T>;
                   simd::store<T>(at, simd::load(at) + sum);
                 });
}

template <class T>
void Tile<T>::add_top_weight_gradient() {
  const int l = shape_.layers, units = columns(l);
  const T one = 1;
  T* const sum = sums_->weight[l];
  transpose_bits(bits_of_panel(l, 0, 0), bit_stride_, rows_, units, unit_bits_);
  for (int q = 0; q < panel_count(l - 1); ++q) {
    for (int j = 0; j < kRegisters; ++j) {
      tabulate(tangent_[l - 1] + q * panel_size() + j * kLanes, {&one, 0}, rows_, parameter_, subsets_);
      add_unit_product(units, sum + static_cast<int64_t>(q) * units * kPanel<T> + j * kLanes);
    }
  }
}

template <class T>
void Tile<T>::add_bottom_weight_gradient() {
  const int units = columns(1), dim = shape_.dim;
  transpose_bits(bits_of_panel(1, 0, 0), bit_stride_, rows_, units, unit_bits_);
  for (int p = 0; p < panel_count(2); ++p) {
    for (int j = 0; j < kRegisters; ++j) {
      for (int d = 0; d < bottom_dims(); ++d) {
        const Factors<T> factors = d < dim ? Factors<T>{dgradient + d, dim} : Factors<T>{dvalue, 1};
        tabulate(delta_[2] + p * panel_size() + j * kLanes, factors, rows_, parameter_, subsets_);
        const int64_t panel = static_cast<int64_t>(d) * panel_count(2) + p;
        add_unit_product(units, bottom_sums_ + panel * units * kPanel<T> + j * kLanes);
      }
    }
  }
}

template <class T>
void Tile<T>::begin_sums(WeightSums<T>& sums) {
  sums_ = &sums;
  if (!bottom_by_bits() || !want.tangent) return;
  memset(bottom_sums_, 0, sizeof(T) * bottom_dims() * columns(2) * columns(1));
}

template <class T>
void Tile<T>::end_sums() {
  if (!bottom_by_bits() || !want.tangent) return;
  shape_.dim == 1 ? add_bottom_sums<1>() : add_bottom_sums<2>();
}

template <class T>
template <int D>
void Tile<T>::add_bottom_sums() {
  const int units = columns(1), dims = bottom_dims();
  const int64_t size = static_cast<int64_t>(columns(2)) * units;
  for (int k = 0; k < units; ++k) {
    V dot[D + 1] = {};
    for (int p = 0; p < panel_count(2); ++p) {
#pragma GCC unroll 4
      for (int j = 0; j < kRegisters; ++j) {
        const int64_t at = (static_cast<int64_t>(p) * units + k) * kPanel<T> + j * kLanes;
        V total = simd::load(sums_->weight[2] + at);
        const auto add = [&](int d, T factor) {
          const V n = simd::load(bottom_sums_ + d * size + at);
          total += factor * n;
          dot[d] += simd::load(network_.forward[2] + at) * n;
        };
#pragma GCC unroll 2
        for (int d = 0; d < D; ++d) add(d, network_.weight1[k * D + d]);
        if (dims > D) add(D, network_.centred_bias[k]);
        simd::store<T>(sums_->weight[2] + at, total);
      }
    }
    const int column = k % kPanel<T>;
    T* const sum = sums_->weight[1] + static_cast<int64_t>(k / kPanel<T>) * D * kPanel<T> + column;
    const T bias = dims > D ? simd::sum<T>(dot[D]) : T(0);
    sums_->bias[1][k] += bias;
#pragma GCC unroll 2
    for (int d = 0; d < D; ++d) sum[d * kPanel<T>] += simd::sum<T>(dot[d]) + network_.centre[d] * bias;
  }
}

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
