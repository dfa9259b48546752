// Generalized leapfrog, eq. (13), one element at a time: each formula with its vector-Jacobian product
// beneath it.
//
// A half kick is v½ = v · e^S + a · force, with S = S_v(F(x), x), force = clip(g_v(F(x), x)) and a = η/2.
// The second half kick of a step and the first of the next see the same x, hence the same S and force: the
// unroll runs both in one pass as a merged kick (`a` from the step that ends, `b` from the step that begins).
// log|det| of a half kick is Σ S, of a merged kick 2 Σ S, of a drift Σ S_x: the caller accumulates it in the
// same pass.
#pragma once

#include "common/clip.h"

namespace ade {
namespace ADE_ISA {
namespace generalized_leapfrog {

// v' = v · e^S + a · force
template <class T>
ADE_HD T half_kick(T v, T force, T exp_s, T a) {
  return v * exp_s + a * force;
}
template <class T>
struct HalfKickVjp {
  T dv, dforce, ds, da;
};
template <class T>
ADE_HD HalfKickVjp<T> half_kick_vjp(T dv_out, T v, T force, T exp_s, T a) {
  return {dv_out * exp_s, a * dv_out, dv_out * v * exp_s, force * dv_out};
}

// v' = (v · e^S + a · force) · e^S + b · force
template <class T>
ADE_HD T merged_kick(T v, T force, T exp_s, T a, T b) {
  return half_kick(half_kick(v, force, exp_s, a), force, exp_s, b);
}
template <class T>
struct MergedKickVjp {
  T dv, dforce, ds, da, db;
};
template <class T>
ADE_HD MergedKickVjp<T> merged_kick_vjp(T dv_out, T v, T force, T exp_s, T a, T b) {
  const auto second = half_kick_vjp(dv_out, half_kick(v, force, exp_s, a), force, exp_s, b);
  const auto first = half_kick_vjp(second.dv, v, force, exp_s, a);
  return {first.dv, first.dforce + second.dforce, first.ds + second.ds, first.da, second.da};
}

// x' = clamp(x · e^{S_x} + η · u, lo, hi), with u = clip(g_x(v))
template <class T>
ADE_HD T drift(T x, T u, T exp_s, T eta, T lo, T hi) {
  return clamp(x * exp_s + eta * u, lo, hi);
}
template <class T>
struct DriftVjp {
  T dx, du, ds, deta;
};
template <class T>
ADE_HD DriftVjp<T> drift_vjp(T dx_out, T x, T u, T exp_s, T eta, T lo, T hi) {
  const T dy = clamp_vjp(dx_out, x * exp_s + eta * u, lo, hi);
  return {dy * exp_s, eta * dy, dy * x * exp_s, u * dy};
}

}  // namespace generalized_leapfrog
}  // namespace ADE_ISA
}  // namespace ade
