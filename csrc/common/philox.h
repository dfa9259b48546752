// Random numbers that are a function of a key and a counter, so that they can be had again, by any thread:
// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), and normals from its
// words by Box and Muller's transform. The integers are the same everywhere; normals differ by the rounding
// of log and of contracted multiply-adds. The logarithm is the caller's.
#pragma once

#include "common/macros.h"

namespace ade {
namespace ADE_ISA {
namespace philox {

struct Words {
  uint32_t x, y, z, w;
};

// Where a block of normals stands: the `block`-th of a row's at one step.
ADE_HD Words counter_of(int64_t step, int64_t row, int64_t block) {
  return {static_cast<uint32_t>(block), static_cast<uint32_t>(row),
          static_cast<uint32_t>(static_cast<uint64_t>(row) >> 32), static_cast<uint32_t>(step)};
}

// A uniform number of a row's at one step: a block that its normals do not reach.
constexpr int64_t kUniformBlock = 0xffffffff;

ADE_HD Words philox4x32_round(Words c, uint32_t key0, uint32_t key1) {
  const uint64_t a = uint64_t{0xd2511f53u} * c.x, b = uint64_t{0xcd9e8d57u} * c.z;
  return {static_cast<uint32_t>(b >> 32) ^ c.y ^ key0, static_cast<uint32_t>(b),
          static_cast<uint32_t>(a >> 32) ^ c.w ^ key1, static_cast<uint32_t>(a)};
}
// Rounds as a recursion: a loop over them would keep loops around it from being vectorised.
template <int kRounds = 10>
ADE_HD Words philox4x32(Words counter, uint32_t key0, uint32_t key1) {
  if constexpr (kRounds == 0) {
    return counter;
  } else {
    return philox4x32<kRounds - 1>(philox4x32_round(counter, key0, key1), key0 + 0x9e3779b9u,
                                   key1 + 0xbb67ae85u);
  }
}
ADE_HD Words philox4x32(Words counter, uint64_t key) {
  return philox4x32(counter, static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32));
}

// --- from words to normals ---

// A normal takes as many bits as it has: a block is four float32 or two float64 normals, in pairs.
template <class T>
struct Bits;
template <>
struct Bits<float> {
  using type = uint32_t;
  static ADE_HD void of(const Words& words, uint32_t (&bits)[4]) {
    bits[0] = words.x, bits[1] = words.y, bits[2] = words.z, bits[3] = words.w;
  }
};
template <>
struct Bits<double> {
  using type = uint64_t;
  static ADE_HD void of(const Words& words, uint64_t (&bits)[2]) {
    bits[0] = uint64_t{words.x} << 32 | words.y, bits[1] = uint64_t{words.z} << 32 | words.w;
  }
};
template <class T>
using bits_t = typename Bits<T>::type;
template <class T>
constexpr int kNormals = 16 / sizeof(T);

// A pair's first bits as a number in (0, 1].
ADE_HD float uniform(uint32_t bits) { return static_cast<float>(bits) * 0x1p-32f + 0x1p-33f; }
ADE_HD double uniform(uint64_t bits) {
  return (static_cast<double>(static_cast<int64_t>(bits >> 12)) + 0.5) * 0x1p-52;
}

template <class T>
struct Direction {
  T cosine, sine;
};

// sin x and cos x for |x| <= π/4, by Taylor's series to below the rounding of T.
template <class T>
ADE_HD Direction<T> small_angle(T x) {
  const T z = x * x;
  T sine, cosine;
  if (sizeof(T) == sizeof(float)) {
    sine = T(1.0 / 362880);
    cosine = T(-1.0 / 3628800);
  } else {
    sine = T(1.0 / 355687428096000.0);
    sine = sine * z - T(1.0 / 1307674368000.0);
    sine = sine * z + T(1.0 / 6227020800.0);
    sine = sine * z - T(1.0 / 39916800);
    sine = sine * z + T(1.0 / 362880);
    cosine = T(1.0 / 20922789888000.0);
    cosine = cosine * z - T(1.0 / 87178291200.0);
    cosine = cosine * z + T(1.0 / 479001600);
    cosine = cosine * z - T(1.0 / 3628800);
  }
  sine = sine * z - T(1.0 / 5040);
  sine = sine * z + T(1.0 / 120);
  sine = sine * z - T(1.0 / 6);
  cosine = cosine * z + T(1.0 / 40320);
  cosine = cosine * z - T(1.0 / 720);
  cosine = cosine * z + T(1.0 / 24);
  cosine = cosine * z - T(0.5);
  return {T(1) + z * cosine, x + x * (z * sine)};
}

// By the angle x within a quadrant (from -π/4) and the quadrant, 0 to 3.
template <class T>
ADE_HD Direction<T> turned(T x, uint32_t quadrant) {
  const Direction<T> d = small_angle(x);
  const bool odd = (quadrant & 1u) != 0;
  const T cosine = odd ? d.sine : d.cosine, sine = odd ? d.cosine : d.sine;
  return {((quadrant + 1u) & 2u) != 0 ? -cosine : cosine, (quadrant & 2u) != 0 ? -sine : sine};
}

// A pair's second bits k as the angle (k + ½) 2π / 2^bits. Its quadrant is taken off as an integer, which
// leaves (2 rest + 1) π / 2^bits.
ADE_HD Direction<float> direction(uint32_t bits) {
  const uint32_t quadrant = (bits + 0x20000000u) >> 30, rest = bits - (quadrant << 30);
  return turned(static_cast<float>(static_cast<int32_t>(2 * rest + 1)) * 0x1.921fb6p-31f, quadrant);
}
ADE_HD Direction<double> direction(uint64_t bits) {
  const uint64_t quadrant = (bits + 0x2000000000000000u) >> 62, rest = bits - (quadrant << 62);
  return turned(static_cast<double>(static_cast<int64_t>(2 * rest + 1)) * 0x1.921fb54442d18p-63,
                static_cast<uint32_t>(quadrant));
}

// √(-2 log u), log u given.
template <class T>
ADE_HD T radius(T log_u) {
  return std::sqrt(T(-2) * log_u);
}

}  // namespace philox
}  // namespace ADE_ISA
}  // namespace ade
