// What a kernel body may use of a warp, with two implementations: 16-bit matrix products, transposition, and
// sums over its lanes.
//
// A value that each lane has its own copy of is a Reg<T>: a register on the device, an array of 32 on the
// host. `warp.each(f)` runs f(lane) for the lanes, which reach their own copies by `reg.at(lane)`; all else
// is done by the warp together.
//
// Matrices are tiles of 16 x 16 in *fragment order*: lane 4 g + t holds, of rows g and g + 8, columns 2t, 2t
// + 1, 2t + 8 and 2t + 9. As 8 floats (Eight) that is what a product leaves; as bfloat16 pairs (Quad) it is
// the left operand of the next product, without moving anything between lanes. Element i of the 8 is at
// (tile_row(lane, i), tile_column(lane, i)), pair i / 2 of a Quad holds elements 2i (low half) and 2i + 1.
//
// In *block order* a tile is its blocks of 8 x 8, (0, 0), (0, 1), (1, 0) and (1, 1), row after row: 512 bytes
// that can be read as the right operand that the tile is, or as the one that its transpose is.
#pragma once

#include "common/scalar.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

// Older GPUs have none; builds for them take pack_pair's other branch, and the bindings refuse to launch
// products there.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define ADE_BF16_INSTRUCTIONS
#endif

constexpr int kWarp = 32;
constexpr int kTile = 16;

struct alignas(16) Quad {
  uint32_t v[4];
};
struct alignas(16) Four {
  float v[4];
};
struct Eight {
  float v[8];
};

// Which block pair j of a right operand comes from, of a tile B in block order: for products with the columns
// of Bᵀ, or of B.
template <bool kTransposed>
ADE_HD int block_of_pair(int j) {
  return kTransposed ? j % 2 * 2 + j / 2 : j;
}

ADE_HD int tile_row(int lane, int i) { return lane / 4 + (i / 2 % 2) * 8; }
ADE_HD int tile_column(int lane, int i) { return lane % 4 * 2 + i % 2 + i / 4 * 8; }

// Two floats as a pair of bfloat16, and back.
ADE_HD uint32_t pack_pair(float low, float high) {
#ifdef ADE_BF16_INSTRUCTIONS
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return Store<bf16>::from(low).bits | static_cast<uint32_t>(Store<bf16>::from(high).bits) << 16;
#endif
}
ADE_HD float float_of(uint32_t bits) {
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}
ADE_HD float pair_low(uint32_t pair) { return float_of(pair << 16); }
ADE_HD float pair_high(uint32_t pair) { return float_of(pair & 0xffff0000u); }

#ifdef __CUDACC__

class DeviceWarp {
 public:
  template <class T>
  struct Reg {
    T value;
    __device__ __forceinline__ T& at(int) { return value; }
    __device__ __forceinline__ const T& at(int) const { return value; }
  };

  __device__ __forceinline__ int index() const { return static_cast<int>(threadIdx.x) / kWarp; }

  template <class F>
  __device__ __forceinline__ void each(F f) const {
    f(static_cast<int>(threadIdx.x) % kWarp);
  }

  // c += a b for the left or right half of b's columns. b's pairs run down its columns: {k, k + 8} of the
  // left half, {k, k + 8} of the right.
  template <int Half>
  __device__ __forceinline__ void mma(Reg<Eight>& c, const Reg<Quad>& a, const Reg<Quad>& b) const {
#ifdef ADE_BF16_INSTRUCTIONS
    float* const d = c.value.v + 4 * Half;
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.value.v[0]), "r"(a.value.v[1]), "r"(a.value.v[2]), "r"(a.value.v[3]),
          "r"(b.value.v[2 * Half]), "r"(b.value.v[2 * Half + 1]));
#else
    __trap();
#endif
  }

  // Transposes each of the four 8 x 8 blocks of a tile.
  __device__ __forceinline__ void transpose_blocks(Reg<Quad>& q) const {
#ifdef ADE_BF16_INSTRUCTIONS
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(q.value.v[i]));
    }
#else
    __trap();
#endif
  }

  // The right operand Bᵀ, or B where kTransposed, of a tile B in block order: in shared memory, or anywhere.
  template <bool kTransposed>
  __device__ __forceinline__ void load_shared_blocks(Reg<Quad>& q, const Quad* tile) const {
#ifdef ADE_BF16_INSTRUCTIONS
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    uint32_t* const v = q.value.v;
    const uint32_t row = static_cast<uint32_t>(__cvta_generic_to_shared(tile)) +
                         (block_of_pair<kTransposed>(lane / 8) * 8 + lane % 8) * 16;
    if (kTransposed) {
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                   : "r"(row));
    } else {
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                   : "r"(row));
    }
#else
    __trap();
#endif
  }
  template <bool kTransposed>
  __device__ __forceinline__ void load_blocks(Reg<Quad>& q, const Quad* tile) const {
    const uint32_t* const pairs = reinterpret_cast<const uint32_t*>(tile) + threadIdx.x % kWarp;
#pragma unroll
    for (int j = 0; j < 4; ++j) q.value.v[j] = pairs[block_of_pair<kTransposed>(j) * kWarp];
    if (kTransposed) transpose_blocks(q);
  }

  // Over the four lanes that share a row of a tile; every lane gets it.
  __device__ __forceinline__ void row_or(Reg<uint32_t>& bits) const {
    bits.value |= __shfl_xor_sync(0xffffffffu, bits.value, 1);
    bits.value |= __shfl_xor_sync(0xffffffffu, bits.value, 2);
  }
  __device__ __forceinline__ void row_sum(Reg<float>& sum) const {
    sum.value += __shfl_xor_sync(0xffffffffu, sum.value, 1);
    sum.value += __shfl_xor_sync(0xffffffffu, sum.value, 2);
  }
  // Over the eight lanes that share their columns of a tile; every lane gets them.
  __device__ __forceinline__ void column_sum(Reg<Four>& sum) const {
#pragma unroll
    for (int apart = 4; apart < kWarp; apart *= 2) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sum.value.v[j] += __shfl_xor_sync(0xffffffffu, sum.value.v[j], apart);
    }
  }
};

#else

class HostWarp {
 public:
  template <class T>
  struct Reg {
    T value[kWarp];
    T& at(int lane) { return value[lane]; }
    const T& at(int lane) const { return value[lane]; }
  };

  explicit HostWarp(int index) : index_(index) {}
  int index() const { return index_; }

  template <class F>
  void each(F f) const {
    for (int lane = 0; lane < kWarp; ++lane) f(lane);
  }

  template <int Half>
  void mma(Reg<Eight>& c, const Reg<Quad>& a, const Reg<Quad>& b) const {
    float left[kTile][kTile], right[8][kTile];
    for (int lane = 0; lane < kWarp; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) {
        float* const pair = &left[g + i % 2 * 8][2 * t + i / 2 * 8];
        pair[0] = pair_low(a.at(lane).v[i]);
        pair[1] = pair_high(a.at(lane).v[i]);
      }
      for (int i = 0; i < 2; ++i) {
        right[g][2 * t + 8 * i] = pair_low(b.at(lane).v[2 * Half + i]);
        right[g][2 * t + 8 * i + 1] = pair_high(b.at(lane).v[2 * Half + i]);
      }
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const float* const row = left[tile_row(lane, i)];
        const float* const column = right[tile_column(lane, i)];
        float& sum = c.at(lane).v[4 * Half + i];
        sum = tensor_core_sum(sum, row, column);
      }
    }
  }

  void transpose_blocks(Reg<Quad>& q) const {
    const Reg<Quad> before = q;
    for (int i = 0; i < 4; ++i) {
      const auto element = [&](int row, int column) {
        return before.at(row * 4 + column / 2).v[i] >> (column % 2 * 16) & 0xffffu;
      };
      for (int lane = 0; lane < kWarp; ++lane) {
        const int row = lane / 4, column = lane % 4 * 2;
        q.at(lane).v[i] = element(column, row) | element(column + 1, row) << 16;
      }
    }
  }

  template <bool kTransposed>
  void load_shared_blocks(Reg<Quad>& q, const Quad* tile) const {
    const char* const bytes = reinterpret_cast<const char*>(tile);
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int j = 0; j < 4; ++j) {
        const auto element = [&](int row, int column) {
          uint16_t bits;
          memcpy(&bits, bytes + (block_of_pair<kTransposed>(j) * 8 + row) * 16 + column * 2, sizeof bits);
          return uint32_t{bits};
        };
        const int g = lane / 4, t = lane % 4 * 2;
        q.at(lane).v[j] =
            kTransposed ? element(t, g) | element(t + 1, g) << 16 : element(g, t) | element(g, t + 1) << 16;
      }
    }
  }
  template <bool kTransposed>
  void load_blocks(Reg<Quad>& q, const Quad* tile) const {
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int j = 0; j < 4; ++j) {
        memcpy(&q.at(lane).v[j],
               reinterpret_cast<const uint32_t*>(tile) + block_of_pair<kTransposed>(j) * kWarp + lane,
               sizeof(uint32_t));
      }
    }
    if (kTransposed) transpose_blocks(q);
  }

  void row_or(Reg<uint32_t>& bits) const {
    for (int first = 0; first < kWarp; first += 4) {
      uint32_t all = 0;
      for (int lane = first; lane < first + 4; ++lane) all |= bits.at(lane);
      for (int lane = first; lane < first + 4; ++lane) bits.at(lane) = all;
    }
  }
  void row_sum(Reg<float>& sum) const {
    for (int apart = 1; apart <= 2; apart *= 2) {
      const Reg<float> before = sum;
      for (int lane = 0; lane < kWarp; ++lane) sum.at(lane) += before.at(lane ^ apart);
    }
  }
  void column_sum(Reg<Four>& sum) const {
    for (int apart = 4; apart < kWarp; apart *= 2) {
      const Reg<Four> before = sum;
      for (int lane = 0; lane < kWarp; ++lane) {
        for (int j = 0; j < 4; ++j) sum.at(lane).v[j] += before.at(lane ^ apart).v[j];
      }
    }
  }

 private:
  // c + Σ row column as a tensor core adds: the exact products and c, aligned to the largest of them, lose
  // what lies kTensorCoreBits below its leading bit, and the sum is truncated to a float.
  static float tensor_core_sum(float c, const float* row, const float* column) {
    constexpr int kTensorCoreBits = 25;
    float terms[kTile + 1], plain = c, largest = std::fabs(c);
    terms[kTile] = c;
    for (int k = 0; k < kTile; ++k) terms[k] = row[k] * column[k];  // exact: 8 bits by 8 bits
    for (int k = 0; k < kTile; ++k) plain += terms[k];
    for (int k = 0; k < kTile; ++k) largest = std::fabs(terms[k]) > largest ? std::fabs(terms[k]) : largest;
    // Not a number, 0, or so small or large that the integers below would need care.
    if (!std::isfinite(plain) || !(largest > 1e-25f && largest < 1e25f)) return plain;
    const int exponent = static_cast<int>(bits_of(largest) >> 23) - 127;
    const float scale = power_of_two(kTensorCoreBits - exponent);
    int32_t sum = 0;  // 17 terms below 2^26
    for (int k = 0; k <= kTile; ++k) sum += static_cast<int32_t>(terms[k] * scale);
    int32_t size = sum < 0 ? -sum : sum;
    for (int32_t bit = 1; size / bit >= 1 << 24; bit *= 2) size &= ~bit;
    return static_cast<float>(sum < 0 ? -size : size) * power_of_two(exponent - kTensorCoreBits);
  }
  static uint32_t bits_of(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
  }
  static float power_of_two(int n) { return float_of(static_cast<uint32_t>(127 + n) << 23); }

  int index_;
};

#endif  // __CUDACC__

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
