// What the activations (potentials/mlp_activations.h) need of a number type, for one float.
#pragma once

#include "potentials/mlp_activations.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

struct FloatMath {
  using V = float;

  struct OnePlus {
    float reciprocal, log;
  };
  static ADE_HD float constant(double c) { return static_cast<float>(c); }
  static ADE_HD float select(bool m, float yes, float no) { return m ? yes : no; }
  static ADE_HD float abs(float z) { return std::fabs(z); }
  static ADE_HD float positive_part(float z) { return z < 0 ? 0.0f : z; }  // keeps a NaN
  static ADE_HD float exp(float z) { return std::exp(z); }
  static ADE_HD float expm1(float z) { return std::expm1(z); }
  static ADE_HD OnePlus of_one_plus(float e) { return {1.0f / (1.0f + e), std::log1p(e)}; }
};

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
