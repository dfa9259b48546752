// ReLU and leaky ReLU, and their derivative from one bit: whether the argument was positive.
#pragma once

#include "common/scalar.h"

namespace ade {
namespace ADE_ISA {
namespace kink {

constexpr int kEach = 8;  // entries of a byte of bits, the first one its lowest

// NaN is positive: it comes through.
template <class T>
ADE_HD bool is_positive(T z) {
  return !(z <= T(0));
}
// Of a value, or of a cotangent. 0 is 0, and not 0 times an infinity.
template <class T>
ADE_HD T sloped(T value, bool positive, T slope) {
  return positive ? value : (slope == T(0) ? T(0) : slope * value);
}

}  // namespace kink
}  // namespace ADE_ISA
}  // namespace ade
