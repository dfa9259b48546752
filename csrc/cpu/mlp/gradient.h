// First-order sweeps of a tile: activations with their derivatives, and the gradient (potentials/mlp.h).
#pragma once

#include "cpu/mlp/follow.h"
#include "cpu/mlp/tile.h"

namespace ade {
namespace ADE_ISA {
namespace mlp {

// From a panel of z_l; leaves h_l, φ'_l, φ''_l. Where G_l is known, at the top or kept, also δ_l and
// φ''_l G_l, and at the top f.
template <class T>
template <class Function, Grad Known, bool Value>
void Tile<T>::activate_smooth_rows(int l, int p, const T* z) {
  constexpr bool Last = Known == Grad::kTop;
  const bool bend = bends();
  T* const h = hidden_[l] + p * panel_size();
  T* const slope = slope_[l] + p * panel_size();
  T* const zeta_l = zeta_[l] + p * panel_size();
  T* const delta_l = delta_[l] + p * panel_size();
  const T* const grad_l = Known == Grad::kKept ? grad_panel(l, p) : nullptr;
  const V parameter = simd::broadcast<T>(parameter_);
  for (int r = 0; r < rows_; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kRegisters; ++j) {
      const int64_t at = r * kPanel<T> + j * kLanes;
      const auto phi = Function::at(simd::load(z + at), parameter);
      const V grad = Last                   ? simd::load(network_.out + p * kPanel<T> + j * kLanes)
                     : Known == Grad::kKept ? simd::load(grad_l + at)
                                            : simd::broadcast<T>(1);
      if (Value) simd::store<T>(h + at, phi.value);
      if (Value && Last && want.value) value[r] += simd::sum<T>(phi.value * grad);
      simd::store<T>(slope + at, phi.slope);
      if (bend) {
        simd::store<T>(zeta_l + at, Known == Grad::kLater ? phi.curvature : phi.curvature * grad);
      }
      if (Known != Grad::kLater) simd::store<T>(delta_l + at, delta(grad, phi.slope));
    }
  }
}

template <class T>
template <class Function>
void Tile<T>::activate_smooth(int l, int p, const T* z) {
  if (l < shape_.layers) {
    if (products_.known) {
      activate_smooth_rows<Function, Grad::kKept, true>(l, p, z);
    } else {
      activate_smooth_rows<Function, Grad::kLater, true>(l, p, z);
    }
  } else if (want.value || dvalue) {
    activate_smooth_rows<Function, Grad::kTop, true>(l, p, z);
  } else {  // nobody reads h_L
    activate_smooth_rows<Function, Grad::kTop, false>(l, p, z);
  }
}

template <class T>
void Tile<T>::activate_linear(int l, int p, const T* z) {
  const bool last = l == shape_.layers;
  T* const h = hidden_[l] + p * panel_size();
  T* const delta_l = delta_[l] + p * panel_size();
  const bool bits_suffice = !has_hidden(l);
  const bool keep_value = !bits_suffice && (!last || dvalue || products_.hidden);
  const V one = simd::broadcast<T>(1), a = simd::broadcast<T>(parameter_);
  for (int r = 0; r < rows_; ++r) {
    uint32_t bits = 0;
#pragma GCC unroll 4
    for (int j = 0; j < kRegisters; ++j) {
      const int64_t at = r * kPanel<T> + j * kLanes;
      const V z_r = simd::load(z + at);
      const simd::Mask<T> positive = z_r > V{};
      const V phi = PiecewiseLinear<simd::Math<T>>::value(z_r, a, parameter_);
      bits |= simd::bits_of(positive) << (j * kLanes);
      if (keep_value) simd::store<T>(h + at, phi);
      if (last) {
        const V w = simd::load(network_.out + p * kPanel<T> + j * kLanes);
        if (want.value) value[r] += simd::sum<T>(phi * w);
        if (!bits_suffice) simd::store<T>(delta_l + at, delta(w, positive ? one : a));
      }
    }
    store_bits(l, p, r, bits);
  }
}

template <class T>
void Tile<T>::forward(int l) {
  using M = simd::Math<T>;
  if (l == shape_.layers && want.value) {
    for (int r = 0; r < rows_; ++r) value[r] = network_.out_bias;
  }
  const T* const in = l == 1 ? x : hidden_[l - 1];
  const int64_t packed_panel = static_cast<int64_t>(columns(l - 1)) * kPanel<T>;
  const bool follows = l == 2 && bottom_centre_;
  if (follows) bottom_changes_.find(rows_, bits_of_panel(1, 0, 0), bit_stride_);
  for (int p = 0; p < panel_count(l); ++p) {
    T* const z = z_panel(l, p);
    if (follows) {
      shape_.dim == 1 ? follow_bottom<1>(p, z) : follow_bottom<2>(p, z);
    } else if (l == 2 && bottom_by_bits()) {
      shape_.dim == 1 ? bottom_forward<1>(p, z) : bottom_forward<2>(p, z);
    } else if (z == panel_ || !products_.known) {
      multiply(in, l - 1, network_.forward[l] + p * packed_panel, network_.bias[l] + p * kPanel<T>, z);
    }
    switch (shape_.activation) {
      case kSoftplus:
        activate_smooth<Softplus<M>>(l, p, z);
        break;
      case kSilu:
        activate_smooth<Silu<M>>(l, p, z);
        break;
      case kTanh:
        activate_smooth<Tanh<M>>(l, p, z);
        break;
      case kElu:
        activate_smooth<Elu<M>>(l, p, z);
        break;
      default:
        activate_linear(l, p, z);
    }
  }
  if (products_.hidden && has_hidden(l)) store_hidden(l);
}

// δ_L of a piecewise-linear potential whose bits were kept: no forward sweep.
template <class T>
void Tile<T>::seed_from_bits() {
  const int l = shape_.layers;
  if (by_bits(l)) return;
  for (int p = 0; p < panel_count(l); ++p) {
    T* const delta_l = delta_[l] + p * panel_size();
    for (int r = 0; r < rows_; ++r) {
      const uint32_t bits = load_bits(l, p, r);
#pragma GCC unroll 4
      for (int j = 0; j < kRegisters; ++j) {
        const V w = simd::load(network_.out + p * kPanel<T> + j * kLanes);
        simd::store<T>(delta_l + r * kPanel<T> + j * kLanes, delta(w, slope_from_bits(bits, j)));
      }
    }
  }
}

// δ_l from a panel of G_l; φ''_l becomes φ''_l G_l where second-order products will ask for it.
template <class T>
void Tile<T>::backward_smooth(int l, int p, const T* grad) {
  const bool bend = bends();
  const T* const slope = slope_[l] + p * panel_size();
  T* const delta_l = delta_[l] + p * panel_size();
  T* const zeta_l = zeta_[l] + p * panel_size();
  for (int64_t at = 0; at < panel_size(); at += kLanes) {
    const V g = simd::load(grad + at);
    simd::store<T>(delta_l + at, delta(g, simd::load(slope + at)));
    if (bend) simd::store<T>(zeta_l + at, simd::load(zeta_l + at) * g);
  }
}

template <class T>
void Tile<T>::backward_linear(int l, int p, const T* grad) {
  T* const delta_l = delta_[l] + p * panel_size();
  for (int r = 0; r < rows_; ++r) {
    const uint32_t bits = load_bits(l, p, r);
#pragma GCC unroll 4
    for (int j = 0; j < kRegisters; ++j) {
      const int64_t at = r * kPanel<T> + j * kLanes;
      simd::store<T>(delta_l + at, delta(simd::load(grad + at), slope_from_bits(bits, j)));
    }
  }
}

template <class T>
void Tile<T>::backward(int l) {
  if (products_.known && !linear()) return;  // done with the activations
  if (l == 1 && bottom_by_bits()) {          // P in its place, which a forward sweep has computed
    for (int p = 0; p < panel_count(2) && !products_.known && !want.forward(); ++p) {
      multiply_bottom(p);
    }
    return;
  }
  const int64_t packed_panel = static_cast<int64_t>(columns(l + 1)) * kPanel<T>;
  const bool follows = by_bits(l + 1) && top_grad_;
  if (follows) top_changes_.find(rows_, bits_of_panel(l + 1, 0, 0), bit_stride_);
  for (int p = 0; p < panel_count(l); ++p) {
    T* const grad = follows ? follow_top(p) : grad_panel(l, p);
    if (!products_.known && !follows) {
      if (by_bits(l + 1)) {
        multiply_top(p, grad);
      } else {
        multiply(delta_[l + 1], l + 1, network_.backward[l + 1] + p * packed_panel, zeros_, grad);
      }
    }
    if (linear()) {
      backward_linear(l, p, grad);
    } else {
      backward_smooth(l, p, grad);
    }
  }
}

template <class T>
void Tile<T>::input_gradient() {
  if (!bottom_by_bits()) return project(delta_[1], gradient);
  shape_.dim == 1 ? bottom_gradient<1>() : bottom_gradient<2>();
}

template <class T>
template <int D>
void Tile<T>::bottom_gradient() {
  for (int r = 0; r < rows_; ++r) {
    V dot[D] = {};
    for (int p = 0; p < panel_count(2); ++p) {
      const T* const delta_2 = delta_[2] + p * panel_size() + r * kPanel<T>;
#pragma GCC unroll 2
      for (int d = 0; d < D; ++d) {
        const T* const product = bottom_panel(d, p) + r * kPanel<T>;
#pragma GCC unroll 4
        for (int j = 0; j < kRegisters; ++j) {
          dot[d] += simd::load(delta_2 + j * kLanes) * simd::load(product + j * kLanes);
        }
      }
    }
#pragma GCC unroll 2
    for (int d = 0; d < D; ++d) gradient[r * D + d] = simd::sum<T>(dot[d]);
  }
}

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
