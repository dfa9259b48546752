// Leapfrog, eq. (10), one element at a time: each formula with its vector-Jacobian product beneath it.
//
// The second half kick of a step and the first of the next see the same gradient F(x), so the unroll (11)
// runs as T + 1 kicks and T drifts; `k` is the merged step of a kick: η⁰/2, (ηᵗ⁻¹ + ηᵗ)/2, ηᵀ⁻¹/2. Clips are
// applied by the caller: `force` is clip(F(x)), `u` is clip(v) (common/clip.h).
#pragma once

#include "common/clip.h"

namespace ade {
namespace ADE_ISA {
namespace leapfrog {

// v' = v + k · force
template <class T>
ADE_HD T kick(T v, T force, T k) {
  return v + k * force;
}
template <class T>
struct KickVjp {
  T dv, dforce, dk;
};
template <class T>
ADE_HD KickVjp<T> kick_vjp(T dv_out, T force, T k) {
  return {dv_out, k * dv_out, force * dv_out};
}

// x' = clamp(x + η · u, lo, hi)
template <class T>
ADE_HD T drift(T x, T u, T eta, T lo, T hi) {
  return clamp(x + eta * u, lo, hi);
}
template <class T>
struct DriftVjp {
  T dx, du, deta;
};
template <class T>
ADE_HD DriftVjp<T> drift_vjp(T dx_out, T x, T u, T eta, T lo, T hi) {
  const T dy = clamp_vjp(dx_out, x + eta * u, lo, hi);
  return {dy, eta * dy, u * dy};
}

}  // namespace leapfrog
}  // namespace ADE_ISA
}  // namespace ade
