// How the CPU kernels walk over rows, and the row-wise parts they share: clips, and sums over the batch.
//
// A kernel works run by run: a run is at most kRun adjacent elements, so that what one loop writes is still
// in the first level cache when the next loop of a fused kernel reads it. Long rows are cut into runs; short
// rows (2-D data) are laid end to end, `fold` rows to a run, against steps that are tiled as often: the loops
// stay long enough to vectorise. Norm clips need their whole row before its first element, so they walk row
// by row.
#pragma once

#include "common/clip.h"
#include "common/scalar.h"
#include "launch/clips.h"

namespace ade {
namespace ADE_ISA {

constexpr int64_t kRun = 512;
constexpr int64_t kGrainElements = 32768;  // a thread is worth waking for this much work

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class Body>
void parallel_for(cpu::Parallel parallel, int64_t count, int64_t elements_each, const Body& body) {
  if (count <= 0) return;
  const auto call = [](const void* context, int64_t begin, int64_t end) {
    (*static_cast<const Body*>(context))(begin, end);
  };
  parallel(count, ceil_div(kGrainElements, max_of(elements_each, 1)), call, &body);
}

struct Walk {
  int64_t cols, fold;

  Walk(int64_t cols, bool whole_rows)
      : cols(cols), fold(whole_rows || cols == 0 || cols >= kRun / 2 ? 1 : kRun / cols) {}

  // body(row, rows): rows that share their runs.
  template <class Body>
  void for_each_group(int64_t begin, int64_t end, const Body& body) const {
    for (int64_t row = begin; row < end; row += fold) body(row, min_of(fold, end - row));
  }
  // body(col, at, size): a run starts at element `at` of the states and `col` of the tiled steps.
  template <class Body>
  void for_each_run(int64_t row, int64_t rows, const Body& body) const {
    if (fold > 1) {
      body(int64_t{0}, row * cols, rows * cols);
    } else {
      for (int64_t col = 0; col < cols; col += kRun) body(col, row * cols + col, min_of(kRun, cols - col));
    }
  }
};

// A row [D] that every sample shares, tiled as the walk needs it.
template <class A>
class SharedRow {
 public:
  SharedRow(const void* row, const Walk& walk) : data_(static_cast<const A*>(row)) {
    if (walk.fold == 1 || row == nullptr) return;
    for (int64_t i = 0; i < walk.fold * walk.cols; ++i) tiled_[i] = data_[i % walk.cols];
    data_ = tiled_;
  }
  SharedRow(const SharedRow&) = delete;
  SharedRow& operator=(const SharedRow&) = delete;
  const A* at(int64_t col) const { return data_ + col; }

 private:
  const A* data_;
  A tiled_[kRun];
};

// Elements of a row in the type their arithmetic runs in.
template <class S>
struct Loaded {
  const S* data;
  acc_t<S> operator()(int64_t i) const { return load(data[i]); }
};

// ----------------------------------------------------------------------------------------------------------
// clips

template <class A>
struct NoClip {
  A operator()(A u) const { return u; }
  A vjp(A dy, A) const { return dy; }
};
template <class A>
struct ValueClip {
  A c;
  A operator()(A u) const { return clamp(u, -c, c); }
  A vjp(A dy, A u) const { return clamp_vjp(dy, u, -c, c); }
};
template <class A>
struct NormClip {
  A scale, shrink;
  A operator()(A u) const { return u * scale; }
  A vjp(A dy, A u) const { return norm_clip_vjp(dy, u, scale, shrink); }
};

// A clip as it acts on the rows at hand: `scale` and `shrink` belong to one row, of a norm clip alone.
template <class A>
struct RowClip {
  int32_t mode;
  A bound, scale, shrink;

  // Calls body with the clip as a type, so that each loop is compiled for its clip.
  template <class Body>
  void visit(const Body& body) const {
    if (mode == kClipNorm) {
      body(NormClip<A>{scale, shrink});
    } else if (mode == kClipValue) {
      body(ValueClip<A>{bound});
    } else {
      body(NoClip<A>{});
    }
  }
};

template <class S>
acc_t<S> square_norm(const S* u, int64_t size) {
  acc_t<S> sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += load(u[i]) * load(u[i]);
  return sum;
}

// A clip that needs no row to know what it does: none, or a value clip.
template <class A>
RowClip<A> elementwise_clip(const ClipArgs& clip) {
  return {clip.mode, static_cast<A>(clip.bound), A(1), A(0)};
}

// The clip of the row u [cols]; rows that share their runs share it too, since a norm clip walks row by row.
template <class S>
RowClip<acc_t<S>> row_clip(const ClipArgs& clip, const S* u, int64_t cols) {
  using A = acc_t<S>;
  if (clip.mode != kClipNorm) return elementwise_clip<A>(clip);
  const A bound = static_cast<A>(clip.bound);
  return {clip.mode, bound, norm_clip_scale(square_norm(u, cols), bound), A(0)};
}

// The same for its vector-Jacobian product; inner_product() is ⟨u, dy⟩ over the row, asked for by a norm clip
// alone.
template <class S, class InnerProduct>
RowClip<acc_t<S>> row_clip_vjp(const ClipArgs& clip, const S* u, int64_t cols,
                               const InnerProduct& inner_product) {
  using A = acc_t<S>;
  if (clip.mode != kClipNorm) return elementwise_clip<A>(clip);
  const A bound = static_cast<A>(clip.bound);
  const A square = square_norm(u, cols);
  return {clip.mode, bound, norm_clip_scale(square, bound), norm_clip_shrink(square, inner_product(), bound)};
}

// ------------------------------------------------------------------------------------------- sums over the
// batch

// Rows are summed in blocks whose number depends on the shape alone, and the blocks in their order: the
// result does not depend on the threads. A block is long enough for its partial sums to cost little beside
// its rows.
struct RowBlocks {
  int64_t rows, cols, count, each;

  RowBlocks(int64_t rows, int64_t cols) : rows(rows), cols(cols) {
    const int64_t shortest = max_of(4, ceil_div(8192, max_of(cols, 1)));
    count = max_of(1, min_of(64, rows / shortest));
    each = ceil_div(rows, count);
  }
  int64_t begin(int64_t block) const { return min_of(rows, block * each); }
};

// One cotangent [D] that is summed over the batch: its sum over one block.
template <class A>
class ColumnSum {
 public:
  ColumnSum() = default;
  ColumnSum(const ColumnSum&) = delete;
  ColumnSum& operator=(const ColumnSum&) = delete;

  void begin(A* target, const Walk& walk) {
    target_ = target;
    direct_ = walk.fold == 1 && target != nullptr;
    A* sums = direct_ ? target : tiled_;
    for (int64_t i = 0; i < (direct_ ? walk.cols : kRun); ++i) sums[i] = 0;
  }
  // Where the run that starts at `col` adds its terms.
  A* at(int64_t col) { return direct_ ? target_ + col : tiled_; }
  void end(const Walk& walk) {
    if (direct_ || target_ == nullptr) return;
    for (int64_t col = 0; col < walk.cols; ++col) {
      A sum = 0;
      for (int64_t copy = 0; copy < walk.fold; ++copy) sum += tiled_[copy * walk.cols + col];
      target_[col] = sum;
    }
  }

 private:
  A* target_;
  bool direct_;
  A tiled_[kRun];
};

// Elements of A that sum_over_rows needs: partial sums, and one scratch row per block.
inline int64_t sum_workspace_elements(int64_t rows, int64_t cols, int64_t sums) {
  const RowBlocks blocks(rows, cols);
  return blocks.count * (sums * cols + max_of(cols, kRun));
}

// outputs[k] [D] = Σ_rows of what body adds to sums[k]; null outputs are not wanted. body(begin, end, sums,
// scratch) treats rows [begin, end); scratch is a row of A for its own use.
template <class A, int K, class Body>
void sum_over_rows(int64_t rows, const Walk& walk, A* const (&outputs)[K], A* workspace,
                   cpu::Parallel parallel, const Body& body) {
  const int64_t cols = walk.cols;
  const RowBlocks blocks(rows, cols);
  A* const scratch = workspace + blocks.count * K * cols;
  const auto partial = [&](int k, int64_t block) { return workspace + (k * blocks.count + block) * cols; };

  parallel_for(parallel, blocks.count, blocks.each * cols, [&](int64_t first, int64_t last) {
    ColumnSum<A> sums[K];
    for (int64_t block = first; block < last; ++block) {
      for (int k = 0; k < K; ++k) {
        A* const target = blocks.count == 1 ? outputs[k] : partial(k, block);
        sums[k].begin(outputs[k] == nullptr ? nullptr : target, walk);
      }
      body(blocks.begin(block), blocks.begin(block + 1), sums, scratch + block * max_of(cols, kRun));
      for (int k = 0; k < K; ++k) sums[k].end(walk);
    }
  });
  if (blocks.count == 1) return;
  parallel_for(parallel, cols, blocks.count * K, [&](int64_t first, int64_t last) {
    for (int k = 0; k < K; ++k) {
      A* const output = outputs[k];
      if (output == nullptr) continue;
      for (int64_t col = first; col < last; ++col) output[col] = 0;
      for (int64_t block = 0; block < blocks.count; ++block) {
        const A* const terms = partial(k, block);
#pragma omp simd
        for (int64_t col = first; col < last; ++col) output[col] += terms[col];
      }
    }
  });
}

// Calls body with a value of the storage type that `dtype` names.
template <class Body>
void visit_dtype(Dtype dtype, const Body& body) {
  if (dtype == kFloat64) {
    body(double{});
  } else if (dtype == kBFloat16) {
    body(bf16{});
  } else {
    body(float{});
  }
}

inline int64_t accumulator_bytes(Dtype dtype) { return dtype == kFloat64 ? 8 : 4; }

}  // namespace ADE_ISA
}  // namespace ade
