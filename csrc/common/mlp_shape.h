// What an MLP potential is, apart from its weights.
#pragma once

#include "common/macros.h"

namespace ade {

enum Activation : int32_t {
  kRelu = 0,
  kLeakyRelu = 1,
  kSoftplus = 2,
  kSilu = 3,
  kTanh = 4,
  kElu = 5,
};

// φ'' = 0 almost everywhere, and φ' is one bit.
ADE_HD constexpr bool piecewise_linear(int32_t activation) {
  return activation == kRelu || activation == kLeakyRelu;
}

// How matrix products of float32 numbers are computed on a GPU: from so many bfloat16 parts of each factor,
// with float32 sums. The errors are those of bfloat16 (8 bits), of about 16 bits, and of float32. The CPU
// computes in the numbers' own type.
enum MatmulPrecision : int32_t { kMediumPrecision = 1, kHighPrecision = 2, kHighestPrecision = 3 };

constexpr int kMaxHiddenLayers = 4;

struct MlpShape {
  int32_t dim;                      // D
  int32_t layers;                   // L, hidden layers
  int32_t width[kMaxHiddenLayers];  // of the hidden layers
  int32_t activation;               // an Activation
  double parameter;                 // leaky relu's slope, elu's alpha
};

// Whether the CPU's kernels take φ' of a piecewise-linear potential as bits: of the top layer, but for the
// shallowest potential, whose W_L is narrow; and of the bottom layer below another hidden layer than the top,
// for few enough dimensions to have a table for each (cpu/mlp/subsets.h).
constexpr int kMaxBottomDims = 2;
ADE_HD bool top_is_bits(const MlpShape& shape) {
  return piecewise_linear(shape.activation) && shape.layers > 1;
}
ADE_HD bool bottom_is_bits(const MlpShape& shape) {
  return piecewise_linear(shape.activation) && shape.layers > 2 && shape.dim <= kMaxBottomDims;
}

// Columns of the matrix products that lead through hidden layers to the gradient: G_l, l < L, and of a smooth
// potential z_l, l > 1 (potentials/mlp.h), or P_d in place of G_1. They are what the backward pass on the CPU
// would have to compute again.
ADE_HD int product_columns(const MlpShape& shape) {
  int count = bottom_is_bits(shape) ? shape.dim * shape.width[1] : shape.layers > 1 ? shape.width[0] : 0;
  for (int l = 2; l < shape.layers; ++l) count += shape.width[l - 1];
  for (int l = 2; l <= shape.layers && !piecewise_linear(shape.activation); ++l) count += shape.width[l - 1];
  return count;
}

// Columns of h_l that a value's backward pass would have to compute again: of a piecewise-linear potential,
// but for the layers that are taken as bits.
ADE_HD int hidden_columns(const MlpShape& shape) {
  int count = 0;
  for (int l = 1; l <= shape.layers && piecewise_linear(shape.activation); ++l) {
    const bool bits = (l == shape.layers && top_is_bits(shape)) || (l == 1 && bottom_is_bits(shape));
    count += bits ? 0 : shape.width[l - 1];
  }
  return count;
}

// Columns that the field's forward pass keeps.
ADE_HD int field_columns(const MlpShape& shape) { return product_columns(shape) + hidden_columns(shape); }

}  // namespace ade
