// e^x without branches or calls, so that a loop over it vectorises on every instruction set (libm's does not,
// and libmvec's is only reached with -ffast-math).
//
// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor series, then times 2^n in two factors, so that
// results in the subnormal range are right and those beyond the largest number become infinite. NaN gives
// NaN. Measured against float64 and long double (tests/test_ops.py): float32 within 2e-7, float64 within
// 6e-16, relative.
#pragma once

#include <cstring>

#include "common/macros.h"

namespace ade {
namespace ADE_ISA {

inline float vector_exp(float x) {
  constexpr float kLog2e = 0x1.715476p+0f;
  constexpr float kLn2High = 0x1.62e4p-1f;  // 14 bits: n * kLn2High is exact
  constexpr float kLn2Low = 0x1.7f7d1cp-20f;
  constexpr float kRound = 0x1.8p23f;  // adding it rounds to an integer, left in the low bits
  x = x < -104.0f ? -104.0f : (x > 89.0f ? 89.0f : x);
  const float shifted = x * kLog2e + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;

  float q = 1.0f / 5040;
  q = q * r + 1.0f / 720;
  q = q * r + 1.0f / 120;
  q = q * r + 1.0f / 24;
  q = q * r + 1.0f / 6;
  q = q * r + 0.5f;
  const float exp_r = 1.0f + (r + r * r * q);

  uint32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  const uint32_t biased = bits - 0x4b400000u + 512u;  // n + 512 > 0
  const uint32_t half = biased >> 1;                  // n = (half - 256) + (biased - half - 256)
  const uint32_t low_bits = (half - 256u + 127u) << 23, high_bits = (biased - half - 256u + 127u) << 23;
  float low, high;
  memcpy(&low, &low_bits, sizeof low);
  memcpy(&high, &high_bits, sizeof high);
  return exp_r * low * high;
}

inline double vector_exp(double x) {
  constexpr double kLog2e = 0x1.71547652b82fep+0;
  constexpr double kLn2High = 0x1.62e42feep-1;  // 32 bits: n * kLn2High is exact
  constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
  constexpr double kRound = 0x1.8p52;
  x = x < -746.0 ? -746.0 : (x > 710.0 ? 710.0 : x);
  const double shifted = x * kLog2e + kRound;
  const double n = shifted - kRound;
  const double r = (x - n * kLn2High) - n * kLn2Low;

  double q = 1.0 / 6227020800.0;  // 1 / 13!
  q = q * r + 1.0 / 479001600.0;
  q = q * r + 1.0 / 39916800.0;
  q = q * r + 1.0 / 3628800.0;
  q = q * r + 1.0 / 362880.0;
  q = q * r + 1.0 / 40320.0;
  q = q * r + 1.0 / 5040.0;
  q = q * r + 1.0 / 720.0;
  q = q * r + 1.0 / 120.0;
  q = q * r + 1.0 / 24.0;
  q = q * r + 1.0 / 6.0;
  q = q * r + 0.5;
  const double exp_r = 1.0 + (r + r * r * q);

  uint64_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  const uint64_t biased = bits - 0x4338000000000000u + 4096u;  // n + 4096 > 0
  const uint64_t half = biased >> 1;
  const uint64_t low_bits = (half - 2048u + 1023u) << 52, high_bits = (biased - half - 2048u + 1023u) << 52;
  double low, high;
  memcpy(&low, &low_bits, sizeof low);
  memcpy(&high, &high_bits, sizeof high);
  return exp_r * low * high;
}

}  // namespace ADE_ISA
}  // namespace ade
