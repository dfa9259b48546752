// A multi-layer perceptron f(x) = w·h_L + b, h_l = φ(z_l), z_l = W_l h_{l-1} + b_l, h_0 = x: its value, its
// gradient field F = ∇_x f, and the vector-Jacobian products of both, as sweeps over the layers of a tile of
// samples.
//
// A Tile does the matrix products on its device; this file says which, in which order, and what happens to
// each element between them. Layers are counted 1..L as in the formulas.
//
//   forward     z_l = W_l h_{l-1} + b_l,   h_l = φ(z_l),   φ'_l,   φ''_l
//   backward    G_L = w,   δ_l = φ'_l G_l,   G_{l-1} = δ_l W_l;   F = G_0
//
// With cotangents u [B, D] of F and df [B] of f, the products are, for ⟨F, u⟩ + ⟨f, df⟩,
//
//   tangent     t_0 = u,   ż_l = W_l t_{l-1},   t_l = φ'_l ż_l
//   curvature   ζ_L = φ''_L G_L ż_L + df δ_L,   ζ_l = φ''_l G_l ż_l + φ'_l Y_l,   Y_l = ζ_{l+1} W_{l+1}
//   input       dx = ζ_1 W_1
//   weights     dW_l = Σ δ_l t_{l-1}ᵀ + ζ_l h_{l-1}ᵀ,   db_l = Σ ζ_l
//   output      dw = Σ t_L + df h_L,   db = Σ df
//
// The first is one pass of the network backwards over the tangent, the second carries what the gradient's own
// curvature adds. For a piecewise-linear φ and no df, ζ is zero: dx = 0, and the forward sweep is needed for
// φ' alone, so it is skipped when the bits of φ' were kept.
//
// A piecewise-linear φ is φ' z, and then ζ_l = df δ_l: with s_l = t_l + df h_l, s_0 = u + df x,
//
//   linear      dx = df F,   dW_l = Σ δ_l s_{l-1}ᵀ,   db_l = Σ df δ_l,   dw = Σ s_L
//
// without a pass for ζ; without u that holds for every φ. With M = Σ φ'_L s_{L-1}ᵀ and m = Σ df φ'_L,
//
//   top         dW_L = diag(w) M,   db_L = w m,   dw_i = Σ_k W_L,ik M_ik + b_L,i m_i
//
// without ż_L and h_L, and both M and G_{L-1} = φ'_L diag(w) W_L have a factor of two values. So have
//
//   P_d = (φ'_1 ⊙ W_1,·d) W_2ᵀ,   P_c = (φ'_1 ⊙ (b_1 + W_1 c)) W_2ᵀ
//   N_d = Σ ((u_d + df (x_d - c_d)) φ'_1) δ_2ᵀ,   N_c = Σ (df φ'_1) δ_2ᵀ
//
// for each dimension d and any one point c, and with them, without h_1, G_1, δ_1 and t_1,
//
//   bottom      z_2 = Σ_d (x_d - c_d) P_d + P_c + b_2,   F_d = ⟨δ_2, P_d⟩,   ż_2 = Σ_d u_d P_d
//               dW_2,jk = Σ_d W_1,kd N_d,kj + (b_1 + W_1 c)_k N_c,kj
//               db_1,k = Σ_j W_2,jk N_c,kj,   dW_1,kd = Σ_j W_2,jk N_d,kj + c_d db_1,k
//
// The CPU's tiles do all of this, the top by bits and where D is small the bottom (cpu/mlp/subsets.h).
#pragma once

#include "common/macros.h"

namespace ade {
namespace ADE_ISA {
namespace mlp {

// --- between the products, one element at a time ---

template <class V>
ADE_HD V delta(V grad, V slope) {  // δ_l
  return slope * grad;
}
template <class V>
ADE_HD V tangent(V zdot, V slope) {  // t_l
  return slope * zdot;
}
// ζ_l, of which bend = φ''_l G_l ż_l
template <class V>
ADE_HD V zeta(V bend, V slope, V back) {
  return bend + slope * back;
}

// --- sweeps ---

// What a tile is asked for.
struct Wanted {
  bool value;      // f
  bool gradient;   // F
  bool tangent;    // the products for a cotangent u of F
  bool curvature;  // ζ: a smooth φ with a tangent, or a cotangent df of f that does not come as tangents
  bool weights;    // the weights' gradients
  bool bits_kept;  // φ' of a piecewise-linear φ is already known at x

  ADE_HD bool forward() const { return !bits_kept || curvature || value; }
};

template <class Tile>
ADE_HD void first_order(Tile& tile, const Wanted& want) {
  const int layers = tile.layers();
  if (want.forward()) {
    for (int l = 1; l <= layers; ++l) tile.forward(l);
  } else {
    tile.seed_from_bits();
  }
  if (want.gradient || want.tangent) {
    for (int l = layers - 1; l >= 1; --l) tile.backward(l);
  }
  if (want.gradient) tile.input_gradient();
}

// After first_order at the same x: dx (without curvature it is 0, and not written), and the weights'
// gradients added to the tile's sums.
template <class Tile>
ADE_HD void second_order(Tile& tile, const Wanted& want) {
  const int layers = tile.layers();
  if (want.tangent) {
    for (int l = 1; l <= layers; ++l) tile.tangent(l);
  }
  if (want.curvature) {
    for (int l = layers; l >= 1; --l) tile.curvature(l);
  }
  if (want.curvature) tile.input_product();
  if (!want.weights) return;
  for (int l = layers; l >= 1; --l) tile.weight_gradient(l);
}

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
