// Storage types and the type their arithmetic runs in: float32 and float64 as they are, bfloat16 states in
// float32.
#pragma once

#include <cstring>

#include "common/macros.h"

namespace ade {
namespace ADE_ISA {

struct bf16 {
  uint16_t bits;
};

template <class Storage>
struct Accumulate {
  using type = Storage;
};
template <>
struct Accumulate<bf16> {
  using type = float;
};
template <class Storage>
using acc_t = typename Accumulate<Storage>::type;

ADE_HD float load(float s) { return s; }
ADE_HD double load(double s) { return s; }
ADE_HD float load(bf16 s) {
  const uint32_t wide = static_cast<uint32_t>(s.bits) << 16;
  float f;
  memcpy(&f, &wide, sizeof f);
  return f;
}

template <class Storage>
struct Store {
  static ADE_HD Storage from(Storage a) { return a; }
};
template <>
struct Store<bf16> {
  // Round to nearest even; a NaN stays a NaN (its payload must not round up to infinity).
  static ADE_HD bf16 from(float a) {
    uint32_t wide;
    memcpy(&wide, &a, sizeof wide);
    if (a != a) return bf16{static_cast<uint16_t>((wide >> 16) | 0x40u)};
    return bf16{static_cast<uint16_t>((wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16)};
  }
};

}  // namespace ADE_ISA
}  // namespace ade
