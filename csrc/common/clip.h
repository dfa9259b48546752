// The three clips of the dynamics and their vector-Jacobian products, one element at a time.
// Comparisons are written so that a NaN passes through, as it does in torch.clamp.
#pragma once

#include "common/macros.h"

namespace ade {

enum ClipMode : int32_t { kClipNone = 0, kClipValue = 1, kClipNorm = 2 };

namespace ADE_ISA {

// Sample range and value clip: y = min(max(u, lo), hi), with torch.clamp's derivative (1 on the closed
// interval, 0 at NaN). Infinite bounds are no clip: dy passes, at NaN too.
template <class T>
ADE_HD T clamp(T u, T lo, T hi) {
  return u < lo ? lo : (u > hi ? hi : u);
}
template <class T>
ADE_HD T clamp_vjp(T dy, T u, T lo, T hi) {
  const bool clips = lo > -T(INFINITY) || hi < T(INFINITY);
  return !clips || (u >= lo && u <= hi) ? dy : T(0);
}

// Norm clip of one sample's row u: y = u * s with s = min(1, c / ‖u‖); s = 1 with zero derivative at ‖u‖ = 0.
// `square_norm` is Σ u².
template <class T>
ADE_HD T norm_clip_scale(T square_norm, T c) {
  const T norm = std::sqrt(square_norm);
  return norm > c ? c / norm : T(1);
}
// Its vjp: du = s (dy - u ⟨u, dy⟩ / ‖u‖²) where the clip acts, dy elsewhere. `shrink` is the factor ⟨u, dy⟩ /
// ‖u‖² of that row, or 0 where the clip does not act: the row's part, computed once.
template <class T>
ADE_HD T norm_clip_shrink(T square_norm, T inner_product, T c) {
  return std::sqrt(square_norm) > c ? inner_product / square_norm : T(0);
}
template <class T>
ADE_HD T norm_clip_vjp(T dy, T u, T scale, T shrink) {
  return scale * (dy - u * shrink);
}

}  // namespace ADE_ISA
}  // namespace ade
