// Normals of common/philox.h on the CPU: blocks of four words in runs, each stage of a run a loop that
// vectorises. Compiled once per instruction set (cpu/dispatch.cpp chooses).
#include "common/philox.h"

#include "cpu/mlp/vector_math.h"
#include "cpu/rows.h"
#include "launch/philox.h"

namespace ade {
namespace ADE_ISA {
namespace {

using philox::bits_t;
using philox::kNormals;
using philox::Words;

constexpr int kRunBlocks = 64;
constexpr int64_t kBlockCost = 16;  // in elements of a step kernel

// The blocks of one step, numbered along the rows.
struct Blocks {
  int64_t cols, per_row, step;
  uint64_t key;
};

template <class T>
class Run {
 public:
  // The normals of `count` blocks from `first` on.
  void draw(const Blocks& blocks, int64_t first, int count) {
    int64_t row = first / blocks.per_row, block = first % blocks.per_row;
    for (int i = 0; i < count; ++i) {
      const Words counter = philox::counter_of(blocks.step, row, block);
      x_[i] = counter.x, y_[i] = counter.y, z_[i] = counter.z, w_[i] = counter.w;
      if (++block == blocks.per_row) ++row, block = 0;
    }
    draw_bits(blocks.key);
    for (int k = 0; k < kNormals<T> && k < blocks.cols; k += 2) draw_pair(k);
  }
  T normal(int i, int k) const { return normal_[k][i]; }

 private:
  void draw_bits(uint64_t key) {
#pragma omp simd
    for (int i = 0; i < kRunBlocks; ++i) {
      bits_t<T> bits[kNormals<T>];
      philox::Bits<T>::of(philox::philox4x32({x_[i], y_[i], z_[i], w_[i]}, key), bits);
      for (int k = 0; k < kNormals<T>; ++k) bits_[k][i] = bits[k];
    }
  }
  void draw_pair(int k) {
    T log_u[kRunBlocks];
#pragma omp simd
    for (int i = 0; i < kRunBlocks; ++i) log_u[i] = philox::uniform(bits_[k][i]);
    for (int i = 0; i < kRunBlocks; i += simd::kLanes<T>) {
      simd::store<T>(log_u + i, simd::Math<T>::log(simd::load(log_u + i)));
    }
#pragma omp simd
    for (int i = 0; i < kRunBlocks; ++i) {
      const auto direction = philox::direction(bits_[k + 1][i]);
      const T radius = philox::radius(log_u[i]);
      normal_[k][i] = radius * direction.cosine;
      normal_[k + 1][i] = radius * direction.sine;
    }
  }

  // The counters; beyond `count` they are what an earlier run has left, or 0.
  uint32_t x_[kRunBlocks] = {}, y_[kRunBlocks] = {}, z_[kRunBlocks] = {}, w_[kRunBlocks] = {};
  bits_t<T> bits_[kNormals<T>][kRunBlocks];
  T normal_[kNormals<T>][kRunBlocks];
};

template <class S>
void store_blocks(const Run<acc_t<S>>& run, const Blocks& blocks, int64_t first, int count, S* noise) {
  constexpr int kEach = kNormals<acc_t<S>>;
  int64_t row = first / blocks.per_row, block = first % blocks.per_row;
  for (int i = 0; i < count; ++i) {
    S* const out = noise + row * blocks.cols + block * kEach;
    const int64_t size = min_of(kEach, blocks.cols - block * kEach);
    for (int k = 0; k < size; ++k) out[k] = Store<S>::from(run.normal(i, k));
    if (++block == blocks.per_row) ++row, block = 0;
  }
}

template <class S>
void launch_as(const PhiloxNormal& args, cpu::Parallel parallel) {
  const int64_t per_row = ceil_div(args.cols, kNormals<acc_t<S>>);
  const Blocks blocks{args.cols, per_row, args.step, *static_cast<const uint64_t*>(args.seed)};
  S* const noise = static_cast<S*>(args.noise);
  parallel_for(parallel, args.rows * per_row, kBlockCost, [&](int64_t begin, int64_t end) {
    Run<acc_t<S>> run;
    for (int64_t first = begin; first < end; first += kRunBlocks) {
      const int count = static_cast<int>(min_of(kRunBlocks, end - first));
      run.draw(blocks, first, count);
      store_blocks(run, blocks, first, count, noise);
    }
  });
}

}  // namespace

int64_t workspace_bytes(const PhiloxNormal&) { return 0; }
void launch(const PhiloxNormal& args, cpu::Parallel parallel) {
  visit_dtype(args.dtype, [&](auto storage) { launch_as<decltype(storage)>(args, parallel); });
}

}  // namespace ADE_ISA
}  // namespace ade
