// Products with the derivative of a piecewise-linear activation as one factor: φ' is 1 where a bit is set and
// a where it is not, so that four terms of a sum can only be one of sixteen numbers. Those are tabulated
// once, and a sum of n terms is n / 4 additions of table entries (Arlazarov et al. 1970, "the four
// Russians").
//
// A table is that of one register of columns: [ceil(n / 4), 16, kLanes].
#pragma once

#include "cpu/mlp/product.h"

namespace ade {
namespace ADE_ISA {
namespace mlp {

constexpr int kSubsetTerms = 4, kSubsets = 16, kWordGroups = 32 / kSubsetTerms;

template <class T>
constexpr int64_t subset_table_size(int64_t terms) {
  return (terms + kSubsetTerms - 1) / kSubsetTerms * kSubsets * simd::kLanes<T>;
}

// A factor of each term: data[k * stride].
template <class T>
struct Factors {
  const T* data;
  int64_t stride;
};

// The table of b_k = factor_k data[k * kPanel ...], k < terms; beyond, terms are zero.
template <class T>
static void tabulate(const T* data, const Factors<T>& factors, int terms, T a, T* table) {
  using V = simd::Vector<T>;
  constexpr int kLanes = simd::kLanes<T>;
  for (int first = 0; first < terms; first += kSubsetTerms, table += kSubsets * kLanes) {
    V term[kSubsetTerms][2] = {};  // where the bit is not set, and where it is
    for (int k = 0; k < kSubsetTerms && first + k < terms; ++k) {
      term[k][1] = factors.data[(first + k) * factors.stride] * simd::load(data + (first + k) * kPanel<T>);
      term[k][0] = a * term[k][1];
    }
#pragma GCC unroll 4
    for (int high = 0; high < 4; ++high) {
      const V upper = term[2][high & 1] + term[3][high >> 1];
#pragma GCC unroll 4
      for (int low = 0; low < 4; ++low) {
        simd::store<T>(table + (high * 4 + low) * kLanes, (term[0][low & 1] + term[1][low >> 1]) + upper);
      }
    }
  }
}

// The table's entry for the g-th four bits of a word, in bytes from the entries of these terms.
ADE_INLINE uint32_t entry_of(uint32_t word, int g) {
  constexpr int kShift = simd::kRegisterBytes == 64 ? 6 : simd::kRegisterBytes == 32 ? 5 : 4;
  const int shift = kSubsetTerms * g - kShift;
  return (shift > 0 ? word >> shift : word << -shift) & (kSubsets - 1) << kShift;
}

// sum[r] += Σ_k φ'(bit k of row r) b_k over a word of 32 bits, or the `groups` times four that are left of
// it.
template <class T, int kRows, bool kWhole>
ADE_INLINE void add_subsets(const uint8_t* bits, int64_t stride, int groups, const T* table,
                            simd::Vector<T> (&sum)[kRows]) {
  uint32_t word[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) __builtin_memcpy(&word[r], bits + r * stride, sizeof word[r]);
  const int count = kWhole ? kWordGroups : groups;
#pragma GCC unroll 8
  for (int g = 0; g < count; ++g) {  // of a whole word, shifts by constants
    const char* const entries = reinterpret_cast<const char*>(table + g * kSubsets * simd::kLanes<T>);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      sum[r] += simd::load(reinterpret_cast<const T*>(entries + entry_of(word[r], g)));
    }
  }
}
// finish(r, sum) gets that of row r over all `groups`.
template <class T, int kRows, class Finish>
ADE_INLINE void sum_subsets(int row, const uint8_t* bits, int64_t stride, int groups, const T* table,
                            const Finish& finish) {
  constexpr int kWordTable = kWordGroups * kSubsets * simd::kLanes<T>;
  simd::Vector<T> sum[kRows] = {};
  bits += row * stride;
  for (; groups >= kWordGroups; groups -= kWordGroups) {
    add_subsets<T, kRows, true>(bits, stride, groups, table, sum);
    bits += sizeof(uint32_t);
    table += kWordTable;
  }
  if (groups > 0) add_subsets<T, kRows, false>(bits, stride, groups, table, sum);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) finish(row + r, sum[r]);
}
// One register of columns of the product: finish(r, sum) takes row r of it. Bits are read by words of 32. A
// table at a time: that of 128 terms fills the first-level cache.
template <class T, class Finish>
ADE_INLINE void subset_product(int rows, const uint8_t* bits, int64_t stride, int groups, const T* table,
                               const Finish& finish) {
  constexpr int kRows = 8;
  int r = 0;
  for (; r + kRows <= rows; r += kRows) sum_subsets<T, kRows>(r, bits, stride, groups, table, finish);
  for (; r < rows; ++r) sum_subsets<T, 1>(r, bits, stride, groups, table, finish);
}

// unit u's bits over up to 64 rows: bit r of by_unit[u] is bit u of row r.
static inline void transpose_bits(const uint8_t* bits, int64_t stride, int rows, int units,
                                  uint64_t* by_unit) {
  for (int u = 0; u < units; ++u) by_unit[u] = 0;
  for (int byte = 0; byte < units / 8; ++byte) {
    for (int first = 0; first < rows; first += 8) {
      uint64_t m = 0;  // byte r is row first + r; an 8 by 8 matrix of bits
      for (int r = 0; r < 8 && first + r < rows; ++r) {
        m |= static_cast<uint64_t>(bits[(first + r) * stride + byte]) << (8 * r);
      }
      uint64_t swap = (m ^ (m >> 7)) & 0x00aa00aa00aa00aa;
      m ^= swap ^ (swap << 7);
      swap = (m ^ (m >> 14)) & 0x0000cccc0000cccc;
      m ^= swap ^ (swap << 14);
      swap = (m ^ (m >> 28)) & 0x00000000f0f0f0f0;
      m ^= swap ^ (swap << 28);
      for (int u = 0; u < 8; ++u) by_unit[8 * byte + u] |= (m >> (8 * u) & 255) << first;
    }
  }
}

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
