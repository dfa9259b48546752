// What the activations (potentials/mlp_activations.h) need of a number type, for one float.
#pragma once

#include "potentials/mlp_activations.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

// kFast: on the device with the hardware's own approximations, whose absolute errors are a few units in the
// last place of a 1; for precisions that have rounded more than that away.
template <bool kFast>
struct FloatMath {
  using V = float;

  struct OnePlus {
    float reciprocal, log;
  };
  static ADE_HD float constant(double c) { return static_cast<float>(c); }
  static ADE_HD float select(bool m, float yes, float no) { return m ? yes : no; }
  static ADE_HD float abs(float z) { return std::fabs(z); }
  static ADE_HD float positive_part(float z) { return z < 0 ? 0.0f : z; }  // keeps a NaN
#ifdef __CUDA_ARCH__
  static ADE_HD float divide(float a, float b) { return kFast ? __fdividef(a, b) : a / b; }
  static ADE_HD float exp(float z) { return kFast ? __expf(z) : std::exp(z); }
  static ADE_HD float expm1(float z) { return kFast ? __expf(z) - 1 : std::expm1(z); }
  static ADE_HD float log1p(float e) { return kFast ? __logf(1 + e) : std::log1p(e); }
#else
  static ADE_HD float divide(float a, float b) { return a / b; }
  static ADE_HD float exp(float z) { return std::exp(z); }
  static ADE_HD float expm1(float z) { return std::expm1(z); }
  static ADE_HD float log1p(float e) { return std::log1p(e); }
#endif
  static ADE_HD OnePlus of_one_plus(float e) { return {divide(1.0f, 1.0f + e), log1p(e)}; }
};

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
