// The activations φ with their first and second derivatives: what a potential's value, gradient and
// second-order products need of them. Written once for scalars and vectors: M supplies the number type V,
// exp, expm1, abs, positive_part, divide, and of_one_plus(e), which is 1 / (1 + e) and log(1 + e).
// Comparisons of V give what M::select takes; NaN passes through every formula.
#pragma once

#include "common/macros.h"

namespace ade {
namespace ADE_ISA {
namespace mlp {

template <class V>
struct ActivationJet {
  V value, slope, curvature;  // φ(z), φ'(z), φ''(z)
};

// Relu and leaky relu: z for z > 0, else a z. The derivative at 0 is a, as in torch. Relu is 0 at -inf, where
// 0 z is not. `scalar_a` is the number that all of `a` is.
template <class M>
struct PiecewiseLinear {
  using V = typename M::V;
  template <class T>
  static ADE_HD V value(V z, V a, T scalar_a) {
    return scalar_a == 0 ? M::positive_part(z) : M::select(z > V{}, z, a * z);
  }
};

// log(1 + e^z); like torch's, the identity above 20.
template <class M>
struct Softplus {
  using V = typename M::V;
  static ADE_HD ActivationJet<V> at(V z, V) {
    const V one = M::constant(1), zero = M::constant(0);
    const V e = M::exp(-M::abs(z));
    const auto [reciprocal, log] = M::of_one_plus(e);
    const V curvature = e * reciprocal * reciprocal;
    const auto linear = z > M::constant(20);
    return {M::select(linear, z, M::positive_part(z) + log),
            M::select(linear, one, M::select(z > zero, reciprocal, e * reciprocal)),
            M::select(linear, zero, curvature)};
  }
};

// z σ(z)
template <class M>
struct Silu {
  using V = typename M::V;
  static ADE_HD ActivationJet<V> at(V z, V) {
    const V one = M::constant(1), two = M::constant(2);
    const V s = M::divide(one, one + M::exp(-z));
    const V value = z * s, rest = one - s;
    return {value, s + value * rest, s * rest * (two + z * (one - two * s))};
  }
};

template <class M>
struct Tanh {
  using V = typename M::V;
  static ADE_HD ActivationJet<V> at(V z, V) {
    const V one = M::constant(1), two = M::constant(2);
    const V e = M::expm1(-two * M::abs(z));  // tanh|z| = (1 - e^{-2|z|}) / (1 + e^{-2|z|})
    const V size = M::divide(-e, two + e);
    const V value = M::select(z < V{}, -size, size);
    const V slope = one - value * value;
    return {value, slope, -two * value * slope};
  }
};

// z for z > 0, else a (e^z - 1); φ'' is 0 at 0, as in torch
template <class M>
struct Elu {
  using V = typename M::V;
  static ADE_HD ActivationJet<V> at(V z, V a) {
    const auto linear = z > V{};
    const V e = a * M::expm1(M::select(linear, V{}, z));
    return {M::select(linear, z, e), M::select(linear, M::constant(1), e + a),
            M::select(linear, V{}, M::select(z < V{}, e + a, z))};
  }
};

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
