// Noise that partly refreshes a state, one element at a time, with its vector-Jacobian product beneath it:
// v + σ_v ξ after a kick, x + σ_x ξ within the range of x after a drift. With a decay of the momentum
// beforehand this is the Ornstein-Uhlenbeck step of annealed and Langevin dynamics.
#pragma once

#include "common/clip.h"

namespace ade {
namespace ADE_ISA {

// y' = clamp(y + σ ξ, lo, hi)
template <class T>
ADE_HD T add_noise(T y, T noise, T sigma, T lo, T hi) {
  return clamp(y + sigma * noise, lo, hi);
}
template <class T>
struct NoiseVjp {
  T dy, dsigma;
};
template <class T>
ADE_HD NoiseVjp<T> add_noise_vjp(T dy_out, T y, T noise, T sigma, T lo, T hi) {
  const T dy = clamp_vjp(dy_out, y + sigma * noise, lo, hi);
  return {dy, dy * noise};
}

}  // namespace ADE_ISA
}  // namespace ade
