// exp, expm1, log and log(1 + y) of vectors, without tables or branches, for the activations
// (potentials/mlp_activations.h) and the flows (flows/).
//
// e^z = 2^n e^r with n = round(z / ln 2) and |r| <= ln 2 / 2; e^r - 1 = r + r² q(r), so that expm1 keeps its
// relative accuracy near 0, with Taylor's q in float64 and the minimax q in float32. Arguments are clamped to
// where 2^n is a normal number. NaN gives NaN. log(1 + y): in float32 y + y² q(y) with the minimax q; in
// float64 that would be long, and it is 2 atanh(s) + (0 or ln 2) with s = f / (2 + f) and FDLIBM's
// coefficients, f = y or (y - 1) / 2. log(y) = 2 atanh(s) + n ln 2 in both, with y = 2^n (1 + f).
#pragma once

#include "cpu/mlp/vectors.h"

namespace ade {
namespace ADE_ISA {
namespace simd {

template <class T>
struct MathConstants;
template <>
struct MathConstants<float> {
  static constexpr float kLog2e = 0x1.715476p+0f;
  static constexpr float kLn2High = 0x1.62e4p-1f;  // 14 bits: n * kLn2High is exact
  static constexpr float kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr float kRound =
      0x1.8p23f + 127;  // adding it rounds to an integer, and adds the exponent's bias
  static constexpr float kLowest = -87.0f, kHighest = 88.0f;
  static constexpr int kMantissa = 23;
  static constexpr int kTerms = 5;
  static constexpr float kExp[kTerms] = {0.0013814539f, 0.0083687454f, 0.041668389f, 0.16666521f,
                                         0.49999994f};
  static constexpr int kLogTerms = 8;
  static constexpr float kLog[kLogTerms] = {0.00536479475f, -0.0300656743f, 0.0792043433f, -0.137537867f,
                                            0.191536471f,   -0.248571619f,  0.33321321f,   -0.499996483f};
  static constexpr int kAtanhTerms = 4;
  static constexpr float kAtanh[kAtanhTerms] = {0.24279078841f, 0.28498786688f, 0.40000972152f,
                                                0.66666662693f};
  static constexpr float kSmallestNormal = 0x1p-126f, kRaise = 0x1p32f;
};
template <>
struct MathConstants<double> {
  static constexpr double kLog2e = 0x1.71547652b82fep+0;
  static constexpr double kLn2High = 0x1.62e42feep-1;  // 32 bits: n * kLn2High is exact
  static constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kRound = 0x1.8p52 + 1023;
  static constexpr double kLowest = -708.0, kHighest = 709.0;
  static constexpr int kMantissa = 52;
  static constexpr int kTerms = 12;
  static constexpr double kExp[kTerms] = {
      1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0, 1.0 / 40320.0,
      1.0 / 5040.0,       1.0 / 720.0,       1.0 / 120.0,      1.0 / 24.0,      1.0 / 6.0,      0.5};
  static constexpr int kAtanhTerms = 7;
  static constexpr double kAtanh[kAtanhTerms] = {
      1.479819860511658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01, 2.222219843214978396e-01,
      2.857142874366239149e-01, 3.999999999940941908e-01, 6.666666666666735130e-01};
  static constexpr double kSmallestNormal = 0x1p-1022, kRaise = 0x1p32;
};

template <class T>
struct Math {
  using V = Vector<T>;
  using C = MathConstants<T>;

  ADE_INLINE V constant(double c) { return broadcast<T>(static_cast<T>(c)); }
  ADE_INLINE V select(Mask<T> m, V yes, V no) { return m ? yes : no; }
  ADE_INLINE V abs(V z) { return (V)((Mask<T>)z & ~(Mask<T>)constant(-0.0)); }
  ADE_INLINE V positive_part(V z) { return maximum(V{}, z); }

  template <int kTerms>
  ADE_INLINE V polynomial(const T (&coefficients)[kTerms], V z) {
    V q = constant(coefficients[0]);
#pragma GCC unroll 16
    for (int i = 1; i < kTerms; ++i) q = q * z + coefficients[i];
    return q;
  }

  struct Parts {
    V power, rest;  // e^z = power (1 + rest)
  };
  ADE_INLINE Parts exp_parts(V z) {
    z = maximum(constant(C::kLowest), minimum(constant(C::kHighest), z));
    const V round = constant(C::kRound);
    const V shifted = z * C::kLog2e + round;
    const V n = shifted - round;
    const V r = (z - n * C::kLn2High) - n * C::kLn2Low;
    return {(V)((Mask<T>)shifted << C::kMantissa), r + r * r * polynomial(C::kExp, r)};
  }
  ADE_INLINE V exp(V z) {
    const Parts p = exp_parts(z);
    return p.power + p.power * p.rest;
  }
  ADE_INLINE V expm1(V z) {
    const Parts p = exp_parts(z);
    return p.power * p.rest + (p.power - T(1));
  }

  ADE_INLINE V divide(V a, V b) { return a / b; }

  struct OnePlus {
    V reciprocal, log;
  };
  // 1 / (1 + y) and log(1 + y) for y in [0, 1], by one division.
  ADE_INLINE OnePlus of_one_plus(V y) {
    if constexpr (sizeof(T) == sizeof(float)) {
      return {constant(1) / (y + T(1)), y + y * y * polynomial(C::kLog, y)};
    } else {
      const Mask<T> upper = y > constant(0.41421356237309504880);  // 1 + y > √2: halve it
      const V sum = y + T(1), divisor = y + (upper ? constant(3) : constant(2));
      const V quotient = constant(1) / (sum * divisor);
      const V s = (upper ? y - T(1) : y) * (quotient * sum);
      return {quotient * divisor, (upper ? constant(kLn2) : V{}) + twice_atanh(s)};
    }
  }

  // log(y) for y >= 0, and NaN for NaN.
  ADE_INLINE V log(V y) {
    const Mask<T> subnormal = y < constant(C::kSmallestNormal);
    const Mask<T> bits = (Mask<T>)(subnormal ? y * C::kRaise : y);
    const Mask<T> n = (bits - (Mask<T>)constant(0.70710678118654752440)) >> C::kMantissa;
    const V f = (V)(bits - (n << C::kMantissa)) - T(1);  // 1 + f from √½ to √2
    const V power = ((V)(n + (Mask<T>)constant(C::kRound)) - C::kRound) - (subnormal ? constant(32) : V{});
    const V log = power * constant(C::kLn2Low) + twice_atanh(f / (f + T(2))) + power * constant(C::kLn2High);
    return y == V{} ? constant(-INFINITY) : y < constant(INFINITY) ? log : y;
  }

 private:
  static constexpr double kLn2 = 0.69314718055994530942;

  ADE_INLINE V twice_atanh(V s) {
    const V z = s * s;
    return T(2) * s + s * (z * polynomial(C::kAtanh, z));
  }
};

}  // namespace simd
}  // namespace ADE_ISA
}  // namespace ade
