// The force of a bridged potential β f(x) + log N(x; c, diag 1/κ), one element at a time, with its
// vector-Jacobian product beneath it. The Gaussian is a base measure (the paper's eq. (1)) or the start of an
// annealed path. Its Hessian is the constant diagonal -κ: where f has none, the adjoint needs no network.
#pragma once

#include "common/macros.h"

namespace ade {
namespace ADE_ISA {
namespace affine_force {

template <class T>
struct Coefficients {
  T scale, pull, centre;  // β, κ, c

  // Those of kick t in dimension d; scale [T+1], pull and centre [T+1, D], or null: f alone, no Gaussian.
  static ADE_HD Coefficients at(const void* scale, const void* pull, const void* centre, int64_t t,
                                int64_t dim, int64_t d) {
    return {scale ? static_cast<const T*>(scale)[t] : T(1),
            pull ? static_cast<const T*>(pull)[t * dim + d] : T(0),
            pull ? static_cast<const T*>(centre)[t * dim + d] : T(0)};
  }
};

// force = scale · F - pull · (x - centre), with F = ∇f(x)
template <class T>
ADE_HD T force(T grad, T x, const Coefficients<T>& by) {
  return by.scale * grad - by.pull * (x - by.centre);
}
// dx is what x's own part adds: F's is the potential's affair (potentials/mlp.h, with u = dgrad).
template <class T>
struct ForceVjp {
  T dgrad, dx, dscale, dpull, dcentre;
};
template <class T>
ADE_HD ForceVjp<T> force_vjp(T dforce, T grad, T x, const Coefficients<T>& by) {
  return {by.scale * dforce, -by.pull * dforce, grad * dforce, -(x - by.centre) * dforce, by.pull * dforce};
}

// The Gaussian's own value up to a constant: -½ pull (x - centre)²
template <class T>
ADE_HD T value(T x, const Coefficients<T>& by) {
  return T(-0.5) * by.pull * (x - by.centre) * (x - by.centre);
}
template <class T>
ADE_HD T value_vjp(T dvalue, T x, const Coefficients<T>& by) {  // dx
  return -by.pull * (x - by.centre) * dvalue;
}

}  // namespace affine_force
}  // namespace ADE_ISA
}  // namespace ade
