// Damped leapfrog, the update of the paper's released image code: v ← m v + k clip(F(x)), x ← x + δ clip(v).
// The drift is leapfrog's; only the kick differs. One kick contracts each momentum by m: log|det J| = d log
// m.
#pragma once

#include "steps/leapfrog.h"

namespace ade {
namespace ADE_ISA {
namespace damped_leapfrog {

// v' = m v + k · force
template <class T>
ADE_HD T kick(T v, T force, T k, T m) {
  return m * v + k * force;
}
// m is a hyperparameter: it has no cotangent.
template <class T>
ADE_HD leapfrog::KickVjp<T> kick_vjp(T dv_out, T force, T k, T m) {
  return {m * dv_out, k * dv_out, force * dv_out};
}

}  // namespace damped_leapfrog
}  // namespace ADE_ISA
}  // namespace ade
