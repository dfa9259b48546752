// Vectors of one hardware register through GCC's vector extensions: the same source is AVX-512, AVX2, SSE2 or
// NEON. Masks are integer vectors of all-zero or all-one lanes, as comparisons return them.
#pragma once

#include "common/macros.h"

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#endif

namespace ade {
namespace ADE_ISA {
namespace simd {

#define ADE_INLINE __attribute__((always_inline)) static inline

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kRegisterBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kRegisterBytes = 16, kRegisters = 32;
#else
constexpr int kRegisterBytes = 16, kRegisters = 16;
#endif

template <class T>
struct Types;
template <>
struct Types<float> {
  typedef float Vector __attribute__((vector_size(kRegisterBytes)));
  typedef int32_t Mask __attribute__((vector_size(kRegisterBytes)));
  typedef int32_t Integer;
};
template <>
struct Types<double> {
  typedef double Vector __attribute__((vector_size(kRegisterBytes)));
  typedef int64_t Mask __attribute__((vector_size(kRegisterBytes)));
  typedef int64_t Integer;
};
template <class T>
using Vector = typename Types<T>::Vector;
template <class T>
using Mask = typename Types<T>::Mask;

// Lanes of one register; columns of one panel, in registers and in numbers (32, 16 or 8 of them).
template <class T>
constexpr int kLanes = kRegisterBytes / static_cast<int>(sizeof(T));
template <class T>
constexpr int kPanelRegisters = kLanes<T> == 2 ? 4 : 2;
template <class T>
constexpr int kPanel = kPanelRegisters<T> * kLanes<T>;
// Rows of the largest block of a product: its accumulators take three quarters of the registers.
template <class T>
constexpr int kBlockRows = kRegisters * 3 / 4 / kPanelRegisters<T>;

template <class T>
ADE_INLINE Vector<T> load(const T* p) {
  Vector<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
ADE_INLINE void store(T* p, Vector<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}
template <class T>
ADE_INLINE Vector<T> broadcast(T s) {
  return s - Vector<T>{};  // s - 0 is s bit for bit, also for -0 and NaN
}

// Σ of the lanes, halves first: an order of its own, the same on every call.
template <class T>
ADE_INLINE T sum(Vector<T> v) {
  T lane[kLanes<T>];
  store<T>(lane, v);
#pragma GCC unroll 8
  for (int half = kLanes<T> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) lane[i] += lane[i + half];
  }
  return lane[0];
}

template <class T>
ADE_INLINE Vector<T> select(Mask<T> m, Vector<T> yes, Vector<T> no) {
  return m ? yes : no;
}

// The larger, or the smaller, of a bound and z; z where z is NaN. One instruction of x86, which the compiler
// does not find by itself. (The masks of all lanes spare us a false warning about the unmasked forms.)
#if defined(__AVX512F__)
ADE_INLINE Vector<float> maximum(Vector<float> bound, Vector<float> z) {
  return _mm512_maskz_max_ps(0xffff, bound, z);
}
ADE_INLINE Vector<double> maximum(Vector<double> bound, Vector<double> z) {
  return _mm512_maskz_max_pd(0xff, bound, z);
}
ADE_INLINE Vector<float> minimum(Vector<float> bound, Vector<float> z) {
  return _mm512_maskz_min_ps(0xffff, bound, z);
}
ADE_INLINE Vector<double> minimum(Vector<double> bound, Vector<double> z) {
  return _mm512_maskz_min_pd(0xff, bound, z);
}
#elif defined(__AVX__)
ADE_INLINE Vector<float> maximum(Vector<float> bound, Vector<float> z) { return _mm256_max_ps(bound, z); }
ADE_INLINE Vector<double> maximum(Vector<double> bound, Vector<double> z) { return _mm256_max_pd(bound, z); }
ADE_INLINE Vector<float> minimum(Vector<float> bound, Vector<float> z) { return _mm256_min_ps(bound, z); }
ADE_INLINE Vector<double> minimum(Vector<double> bound, Vector<double> z) { return _mm256_min_pd(bound, z); }
#else
ADE_INLINE Vector<float> maximum(Vector<float> bound, Vector<float> z) { return bound > z ? bound : z; }
ADE_INLINE Vector<double> maximum(Vector<double> bound, Vector<double> z) { return bound > z ? bound : z; }
ADE_INLINE Vector<float> minimum(Vector<float> bound, Vector<float> z) { return bound < z ? bound : z; }
ADE_INLINE Vector<double> minimum(Vector<double> bound, Vector<double> z) { return bound < z ? bound : z; }
#endif

// One bit per lane of a mask, lane 0 lowest, and back.
ADE_INLINE uint32_t bits_of(Mask<float> m) {
#if defined(__AVX512F__)
  return _mm512_cmp_epi32_mask((__m512i)m, _mm512_setzero_si512(), _MM_CMPINT_NE);
#elif defined(__AVX__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)m));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps((__m128)m));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes<float>; i++) bits |= (m[i] ? 1u : 0u) << i;
  return bits;
#endif
}
ADE_INLINE uint32_t bits_of(Mask<double> m) {
#if defined(__AVX512F__)
  return _mm512_cmp_epi64_mask((__m512i)m, _mm512_setzero_si512(), _MM_CMPINT_NE);
#elif defined(__AVX__)
  return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)m));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_pd((__m128d)m));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes<double>; i++) bits |= (m[i] ? 1u : 0u) << i;
  return bits;
#endif
}
template <class T>
ADE_INLINE Mask<T> mask_of(uint32_t bits) {
  Mask<T> lane_bit;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; i++) lane_bit[i] = typename Types<T>::Integer{1} << i;
  const Mask<T> all = static_cast<typename Types<T>::Integer>(bits) - Mask<T>{};
  return (all & lane_bit) != 0;
}

}  // namespace simd
}  // namespace ADE_ISA
}  // namespace ade
