// A thread's columns of a row, and 16-byte loads and stores of them.
#pragma once

#include "common/scalar.h"
#include "cuda/block.h"

#ifndef __CUDA_ARCH__
#include <stdexcept>
#endif

namespace ade {
namespace ADE_ISA {
namespace kernels {

ADE_HD int64_t tiles_of(int64_t count, int64_t tile) { return (count + tile - 1) / tile; }

// 16 bytes of state per thread and access.
template <class Storage>
constexpr int kVec = 16 / sizeof(Storage);

// 16 bytes, or 8, at an address that is a multiple of that: the device faults on any other, and the host run
// says so.
template <int kBytes>
ADE_HD void check_wide(const void* address) {
  static_assert(kBytes == 8 || kBytes % 16 == 0, "whole accesses");
#ifdef __CUDA_ARCH__
  (void)address;
#else
  if (reinterpret_cast<uintptr_t>(address) % (kBytes == 8 ? 8 : 16) != 0)
    throw std::logic_error("misaligned wide access");
#endif
}

template <int N, class T>
ADE_HD void load_wide(T (&to)[N], const T* from) {
  constexpr int bytes = N * sizeof(T);
  check_wide<bytes>(from);
#ifdef __CUDA_ARCH__
  if constexpr (bytes == 8) {
    *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < bytes / 16; ++i)
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
  }
#else
  memcpy(to, from, bytes);
#endif
}

// The words are put together by hand and stored by name: left to itself, nvcc splits some of these stores.
template <class T>
ADE_HD uint32_t word_of(const T* elements) {
  uint32_t word;
  memcpy(&word, elements, sizeof word);
  return word;
}
ADE_HD uint32_t word_of(const bf16* pair) { return pair[0].bits | static_cast<uint32_t>(pair[1].bits) << 16; }

template <int N, class T>
ADE_HD void store_wide(T* to, const T (&from)[N]) {
  constexpr int bytes = N * sizeof(T);
  check_wide<bytes>(to);
  uint32_t words[bytes / 4];
#pragma unroll
  for (int i = 0; i < bytes / 4; ++i) {
    if constexpr (sizeof(T) == 8)
      memcpy(&words[i], reinterpret_cast<const char*>(from) + 4 * i, 4);
    else
      words[i] = word_of(&from[4 * i / sizeof(T)]);
  }
#ifdef __CUDA_ARCH__
  if constexpr (bytes == 8) {
    __stwb(reinterpret_cast<uint2*>(to), make_uint2(words[0], words[1]));
  } else {
#pragma unroll
    for (int i = 0; i < bytes / 16; ++i)
      __stwb(reinterpret_cast<uint4*>(to) + i,
             make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]));
  }
#else
  memcpy(to, words, bytes);
#endif
}

// The N columns of a row that one thread owns: first, first + step, ... below `end`.
// Rows that are a multiple of N long give each thread N neighbours: all or none of them exist, and `wide`
// says that one access may fetch them. Other rows give neighbouring threads neighbouring columns, so that
// single accesses coalesce. Who owns what depends on the length of the row alone, hence so does the order of
// every sum.
struct Columns {
  int64_t first;
  int64_t step;
  int64_t end;  // 0 for a thread without a row
  bool wide;

  // Of tile `tile` of `width` threads x N columns, the part of thread `lane`.
  template <int N>
  static ADE_HD Columns of(int64_t tile, int width, int lane, int64_t cols, bool has_row, bool aligned) {
    const bool neighbours = cols % N == 0;
    return {tile * width * N + (neighbours ? lane * N : lane), neighbours ? 1 : width, has_row ? cols : 0,
            neighbours && aligned};
  }
  ADE_HD bool owns(int j) const { return first + j * step < end; }
};

// A thread's row, and its lane within the group of 2^group_bits threads that owns the row.
struct Place {
  int64_t row;  // a legal one for threads without
  int lane;
  bool has_row;

  ADE_HD Place(int64_t block, int t, int group_bits, int64_t rows)
      : row(block * (kThreads >> group_bits) + (t >> group_bits)), lane(t & ((1 << group_bits) - 1)) {
    has_row = row < rows;
    if (!has_row) row = 0;
  }
};

// out[j] = row[column j] in the accumulation type, 0 where there is none.
template <int N, class T>
ADE_HD void load_columns(acc_t<T> (&out)[N], const T* row, const Columns& at) {
  if (at.wide) {
    alignas(16) T raw[N] = {};
    if (at.owns(0)) load_wide<N>(raw, row + at.first);
#pragma unroll
    for (int j = 0; j < N; ++j) out[j] = load(raw[j]);
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) out[j] = at.owns(j) ? load(row[at.first + j * at.step]) : acc_t<T>(0);
  }
}

template <int N, class T>
ADE_HD void store_columns(T* row, const acc_t<T> (&in)[N], const Columns& at) {
  if (at.wide) {
    alignas(16) T raw[N];
#pragma unroll
    for (int j = 0; j < N; ++j) raw[j] = Store<T>::from(in[j]);
    if (at.owns(0)) store_wide<N>(row + at.first, raw);
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j)
      if (at.owns(j)) row[at.first + j * at.step] = Store<T>::from(in[j]);
  }
}

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
