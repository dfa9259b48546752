// The weights of an MLP as the products read them, and the sums that their gradients are gathered in: panels
// (product.h).
#pragma once

#include "cpu/mlp/arena.h"
#include "cpu/mlp/subsets.h"
#include "launch/mlp.h"

namespace ade {
namespace ADE_ISA {
namespace mlp {

inline int panels(int columns, int panel) { return (columns + panel - 1) / panel; }

// Width of layer l = 0..L; layer 0 is the input.
inline int width(const MlpShape& shape, int l) { return l == 0 ? shape.dim : shape.width[l - 1]; }

// Σ n_l: hidden units, and bits of φ' per sample.
inline int unit_count(const MlpShape& shape) {
  int count = 0;
  for (int l = 1; l <= shape.layers; ++l) count += width(shape, l);
  return count;
}

// φ' of a piecewise-linear φ below zero.
template <class T>
T lower_slope(const MlpShape& shape) {
  return shape.activation == kRelu ? T(0) : static_cast<T>(shape.parameter);
}

// What sweeps will read beside W_l of the tangents: what the products that lead to the gradient take, and
// what the curvature's take.
struct NetworkUse {
  bool products, curvature;
};

template <class T>
struct Network {
  MlpShape shape;
  T* forward[kMaxHiddenLayers + 1];   // W_lᵀ [n_{l-1}, n_l]
  T* backward[kMaxHiddenLayers + 1];  // W_l [n_l, n_{l-1}], the last panel padded with zeros; with
                                      // top_is_bits, diag(w) W_L
  // Tables of columns: with top_is_bits of diag(w) W_L; with bottom_is_bits of diag(W_1,·d) W_2ᵀ for each d,
  // and of diag(b_1 + W_1 c) W_2ᵀ. Else null.
  T* top;
  T* bottom;
  T* centred_bias;           // b_1 + W_1 c
  T centre[kMaxBottomDims];  // c
  const T* weight1;          // W_1 [n_1, D]
  const T* bias[kMaxHiddenLayers + 1];
  const T* out;  // w [n_L]
  T out_bias;

  Network(const MlpShape& shape, Arena& arena) : shape(shape) {
    for (int l = 1; l <= shape.layers; ++l) {
      const int in = width(shape, l - 1), out = width(shape, l);
      forward[l] = arena.take<T>(static_cast<int64_t>(in) * out);
      backward[l] = arena.take<T>(static_cast<int64_t>(panels(in, kPanel<T>)) * kPanel<T> * out);
    }
    const int last = shape.layers;
    top = top_is_bits(shape) ? arena.take<T>(width(shape, last - 1) / simd::kLanes<T> * top_table_size())
                             : nullptr;
    const bool by_bottom = bottom_is_bits(shape);
    bottom = by_bottom ? arena.take<T>((shape.dim + 1) * bottom_size()) : nullptr;
    centred_bias = by_bottom ? arena.take<T>(width(shape, 1)) : nullptr;
  }

  // Of one register of columns.
  int64_t top_table_size() const { return subset_table_size<T>(width(shape, shape.layers)); }
  int64_t bottom_table_size() const { return subset_table_size<T>(width(shape, 1)); }
  // Of one dimension, or the bias.
  int64_t bottom_size() const { return width(shape, 2) / simd::kLanes<T> * bottom_table_size(); }

  void pack(const MlpWeights& weights, const NetworkUse& use) {
    const int last = shape.layers;
    const bool by_top = top_is_bits(shape), by_bottom = bottom_is_bits(shape);
    weight1 = static_cast<const T*>(weights.weight[0]);
    out = static_cast<const T*>(weights.weight[last]);
    out_bias = *static_cast<const T*>(weights.bias[last]);
    for (int l = 1; l <= last; ++l) {
      const T* const w = static_cast<const T*>(weights.weight[l - 1]);
      const int in = width(shape, l - 1), units = width(shape, l);
      const bool only_bits = (l == last && by_top) || (l == 1 && by_bottom);
      if (use.products || !only_bits) pack_forward(w, in, units, forward[l]);
      const bool only_table = l == 2 && by_bottom;
      if (l == 1 || use.curvature || (use.products && !only_table)) pack_backward(w, in, units, backward[l]);
      bias[l] = static_cast<const T*>(weights.bias[l - 1]);
    }
    if (by_top && (use.products || use.curvature)) scale_top();
    if (by_top && use.products) pack_top();
    if (by_bottom) centre_bottom();
    if (by_bottom && use.products) pack_bottom();
  }

 private:
  // W_L becomes diag(w) W_L.
  void scale_top() {
    const int units = width(shape, shape.layers);
    for (int p = 0; p < panels(width(shape, shape.layers - 1), kPanel<T>); ++p) {
      T* const panel = backward[shape.layers] + static_cast<int64_t>(p) * units * kPanel<T>;
      for (int k = 0; k < units; ++k) {
        for (int c = 0; c < kPanel<T>; ++c) panel[k * kPanel<T> + c] *= out[k];
      }
    }
  }
  void pack_top() {
    const int units = width(shape, shape.layers);
    T* table = top;
    const T one = 1;
    for (int p = 0; p < panels(width(shape, shape.layers - 1), kPanel<T>); ++p) {
      const T* const panel = backward[shape.layers] + static_cast<int64_t>(p) * units * kPanel<T>;
      for (int j = 0; j < simd::kPanelRegisters<T>; ++j, table += top_table_size()) {
        tabulate(panel + j * simd::kLanes<T>, {&one, 0}, units, lower_slope<T>(shape), table);
      }
    }
  }
  // The point c around which z_2 is summed: where data and kinks lie together far from 0, its terms would
  // otherwise be large and cancel. Least squares of b_1 + W_1 c, each unit relative to its own size, so that
  // one whose kink is far from all others' has no say; and once more from there.
  void centre_bottom() {
    const int units = width(shape, 1), dim = shape.dim;
    double c[kMaxBottomDims] = {};
    for (int round = 0; round < 2; ++round) {
      double a[kMaxBottomDims][kMaxBottomDims] = {}, rhs[kMaxBottomDims] = {};
      for (int k = 0; k < units; ++k) {
        const double w[kMaxBottomDims] = {weight1[k * dim], dim > 1 ? weight1[k * dim + 1] : T(0)};
        const double rest = bias[1][k] + w[0] * c[0] + w[1] * c[1];
        const double size = rest * rest + w[0] * w[0] + w[1] * w[1];
        if (!(size > 0) || !__builtin_isfinite(size)) continue;
        for (int d = 0; d < kMaxBottomDims; ++d) {
          rhs[d] -= w[d] * rest / size;
          for (int e = 0; e < kMaxBottomDims; ++e) a[d][e] += w[d] * w[e] / size;
        }
      }
      const double ridge = 1e-6 * (a[0][0] + a[1][1]);  // parallel kinks determine no point
      for (int d = 0; d < kMaxBottomDims; ++d) a[d][d] += ridge;
      const double determinant = a[0][0] * a[1][1] - a[0][1] * a[1][0];
      if (!(determinant > 0)) break;  // W_1 is 0
      c[0] += (rhs[0] * a[1][1] - a[0][1] * rhs[1]) / determinant;
      c[1] += (a[0][0] * rhs[1] - rhs[0] * a[1][0]) / determinant;
    }
    // Farther away only where W_1 is next to nothing, and its products may be denormal.
    const double farthest = 1e18;
    const bool fits = __builtin_fabs(c[0]) <= farthest && __builtin_fabs(c[1]) <= farthest;
    for (int d = 0; d < kMaxBottomDims; ++d) centre[d] = fits ? static_cast<T>(c[d]) : T(0);
    for (int k = 0; k < units; ++k) {
      double sum = bias[1][k];
      for (int d = 0; d < dim; ++d) sum += static_cast<double>(weight1[k * dim + d]) * centre[d];
      // -inf switches a unit of relu off: never read, but 0 times it is NaN.
      const bool off = lower_slope<T>(shape) == 0 && bias[1][k] == -T(__builtin_inf());
      centred_bias[k] = off ? T(0) : static_cast<T>(sum);
    }
  }
  void pack_bottom() {
    const int units = width(shape, 1);
    T* table = bottom;
    for (int d = 0; d <= shape.dim; ++d) {
      const Factors<T> factors =
          d < shape.dim ? Factors<T>{weight1 + d, shape.dim} : Factors<T>{centred_bias, 1};
      for (int p = 0; p < panels(width(shape, 2), kPanel<T>); ++p) {
        const T* const panel = forward[2] + static_cast<int64_t>(p) * units * kPanel<T>;
        for (int j = 0; j < simd::kPanelRegisters<T>; ++j, table += bottom_table_size()) {
          tabulate(panel + j * simd::kLanes<T>, factors, units, lower_slope<T>(shape), table);
        }
      }
    }
  }

  // w [out, in], row-major. Panel p of Wᵀ holds rows p * kPanel ... of W.
  static void pack_forward(const T* w, int in, int out, T* packed) {
    for (int p = 0; p < out / kPanel<T>; ++p) {
      const T* const rows = w + static_cast<int64_t>(p) * kPanel<T> * in;
      T* const panel = packed + static_cast<int64_t>(p) * kPanel<T> * in;
      for (int k = 0; k < in; ++k) {
        for (int c = 0; c < kPanel<T>; ++c) panel[k * kPanel<T> + c] = rows[c * in + k];
      }
    }
  }
  static void pack_backward(const T* w, int in, int out, T* packed) {
    for (int p = 0; p < panels(in, kPanel<T>); ++p) {
      for (int k = 0; k < out; ++k) {
        T* const row = packed + (static_cast<int64_t>(p) * out + k) * kPanel<T>;
        for (int c = 0; c < kPanel<T>; ++c) {
          const int column = p * kPanel<T> + c;
          row[c] = column < in ? w[static_cast<int64_t>(k) * in + column] : T(0);
        }
      }
    }
  }
};

// Whether dW_l is summed as its transpose [n_{l-1}, n_l].
inline bool summed_transposed(const MlpShape& shape, int l) {
  return l == 1 || (l == 2 && bottom_is_bits(shape));
}

// Gradients of the weights, summed over samples and steps; with top_is_bits, M for dW_L, m for db_L, and no
// dw (potentials/mlp.h).
template <class T>
struct WeightSums {
  T* weight[kMaxHiddenLayers + 1];  // dW_l [n_l, n_{l-1}], or transposed (summed_transposed); panels
  T* bias[kMaxHiddenLayers + 1];
  T* out;       // dw [n_L]
  T* out_bias;  // [1]

  WeightSums(const MlpShape& shape, Arena& arena) {
    for (int l = 1; l <= shape.layers; ++l) {
      weight[l] = arena.take<T>(static_cast<int64_t>(width(shape, l - 1)) * width(shape, l));
      bias[l] = arena.take<T>(width(shape, l));
    }
    out = arena.take<T>(width(shape, shape.layers));
    out_bias = arena.take<T>(1);
  }
};

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
