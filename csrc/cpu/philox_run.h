// Runs of normals and of logarithms of uniforms (common/philox.h): blocks of four words, each stage of a run
// a loop that vectorises.
#pragma once

#include "common/philox.h"
#include "cpu/mlp/vector_math.h"
#include "cpu/rows.h"

namespace ade {
namespace ADE_ISA {
namespace philox {

constexpr int kRunBlocks = 64;

// The blocks of one step, numbered along the rows.
struct Blocks {
  int64_t cols, per_row, step;
  uint64_t key;

  template <class T>
  static Blocks of(int64_t cols, int64_t step, uint64_t key) {
    return {cols, ceil_div(cols, kNormals<T>), step, key};
  }
};

template <class T>
class Run {
 public:
  // The normals of `count` blocks from `first` on.
  void draw(const Blocks& blocks, int64_t first, int count) {
    int64_t row = first / blocks.per_row, block = first % blocks.per_row;
    for (int i = 0; i < count; ++i) {
      const Words counter = counter_of(blocks.step, row, block);
      x_[i] = counter.x, y_[i] = counter.y, z_[i] = counter.z, w_[i] = counter.w;
      if (++block == blocks.per_row) ++row, block = 0;
    }
    draw_bits(blocks.key);
    for (int k = 0; k < kNormals<T> && k < blocks.cols; k += 2) draw_pair(k);
  }
  T normal(int i, int k) const { return normal_[k][i]; }

  // log u of `count` rows from `first` on, u in (0, 1], of the block that no normals have.
  void draw_log_uniforms(uint64_t key, int64_t step, int64_t first, int count) {
    for (int i = 0; i < count; ++i) {
      const Words counter = counter_of(step, first + i, kUniformBlock);
      x_[i] = counter.x, y_[i] = counter.y, z_[i] = counter.z, w_[i] = counter.w;
    }
    draw_bits(key);
    draw_logs(0, log_u_);
  }
  T log_uniform(int i) const { return log_u_[i]; }

 private:
  void draw_bits(uint64_t key) {
#pragma omp simd
    for (int i = 0; i < kRunBlocks; ++i) {
      bits_t<T> bits[kNormals<T>];
      Bits<T>::of(philox4x32({x_[i], y_[i], z_[i], w_[i]}, key), bits);
      for (int k = 0; k < kNormals<T>; ++k) bits_[k][i] = bits[k];
    }
  }
  void draw_pair(int k) {
    draw_logs(k, log_u_);
#pragma omp simd
    for (int i = 0; i < kRunBlocks; ++i) {
      const Direction<T> towards = direction(bits_[k + 1][i]);
      const T length = radius(log_u_[i]);
      normal_[k][i] = length * towards.cosine;
      normal_[k + 1][i] = length * towards.sine;
    }
  }
  // log u of the k-th bits of each block.
  void draw_logs(int k, T (&log_u)[kRunBlocks]) {
#pragma omp simd
    for (int i = 0; i < kRunBlocks; ++i) log_u[i] = uniform(bits_[k][i]);
    for (int i = 0; i < kRunBlocks; i += simd::kLanes<T>) {
      simd::store<T>(log_u + i, simd::Math<T>::log(simd::load(log_u + i)));
    }
  }

  // The counters; beyond `count` they are what an earlier run has left, or 0.
  uint32_t x_[kRunBlocks] = {}, y_[kRunBlocks] = {}, z_[kRunBlocks] = {}, w_[kRunBlocks] = {};
  bits_t<T> bits_[kNormals<T>][kRunBlocks];
  T log_u_[kRunBlocks];
  T normal_[kNormals<T>][kRunBlocks];
};

// `count` blocks from `first` on into rows of which the one at `out` is `first_row`.
template <class S>
void store_blocks(const Run<acc_t<S>>& run, const Blocks& blocks, int64_t first, int count, int64_t first_row,
                  S* out) {
  constexpr int kEach = kNormals<acc_t<S>>;
  int64_t row = first / blocks.per_row, block = first % blocks.per_row;
  for (int i = 0; i < count; ++i) {
    S* const at = out + (row - first_row) * blocks.cols + block * kEach;
    const int64_t size = min_of(kEach, blocks.cols - block * kEach);
    for (int k = 0; k < size; ++k) at[k] = Store<S>::from(run.normal(i, k));
    if (++block == blocks.per_row) ++row, block = 0;
  }
}

// The normals of `rows` rows from `first_row` on, at `out`.
template <class S>
void draw_rows(Run<acc_t<S>>& run, const Blocks& blocks, int64_t first_row, int64_t rows, S* out) {
  const int64_t end = (first_row + rows) * blocks.per_row;
  for (int64_t first = first_row * blocks.per_row; first < end; first += kRunBlocks) {
    const int count = static_cast<int>(min_of(kRunBlocks, end - first));
    run.draw(blocks, first, count);
    store_blocks(run, blocks, first, count, first_row, out);
  }
}

}  // namespace philox
}  // namespace ADE_ISA
}  // namespace ade
