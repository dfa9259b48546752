// How a step is spread over blocks and what workspace it needs: functions of shape, dtype and options alone,
// so that the order of every sum, hence every bit of the result, is the same on every device.
#pragma once

#include "cuda/backward.h"
#include "cuda/forward.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

constexpr int64_t kEnoughBlocks = 1024;  // several per multiprocessor of any GPU
constexpr int64_t kMaxGridY = 65535;

inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t align_workspace(int64_t bytes) { return tiles_of(bytes, 64) * 64; }

// 1, 8, 32 or 256 threads per row: one or two 16-byte accesses each, until the block is full.
inline int32_t group_bits_for(int64_t cols, int vec) {
  const int64_t accesses = tiles_of(cols, vec);
  return accesses <= 1 ? 0 : accesses <= 8 ? 3 : accesses <= 64 ? 5 : 8;
}

template <class Storage>
bool is_aligned(const StepArgs<Storage>& args) {
  const void* pointers[] = {args.x,      args.v,     args.force,     args.u,          args.scale_v.data,
                            args.step,   args.x_out, args.next_step, args.drift_step, args.scale_x.data,
                            args.v_out,  args.dx,    args.dx_out,    args.dv_out,     args.dv,
                            args.dforce, args.du,    args.dscale_v,  args.dscale_x};
  uintptr_t bits = 0;
  for (const void* pointer : pointers) bits |= reinterpret_cast<uintptr_t>(pointer);
  return bits % 16 == 0;
}

template <class Storage>
int64_t row_blocks(const StepArgs<Storage>& args) {
  return tiles_of(args.rows, kThreads >> args.group_bits);
}

template <class Body, class Storage>
void plan_forward(StepArgs<Storage>& args) {
  constexpr int N = kVec<Storage>;
  args.aligned = is_aligned(args);
  args.group_bits = group_bits_for(args.cols, N);
  args.splits = 1;
  const bool row_sum = args.force_clip.by_norm() || args.momentum_clip.by_norm() ||
                       args.scale_v.data != nullptr || args.scale_x.data != nullptr;
  if (row_sum || args.rows == 0) return;
  const int64_t tiles = tiles_of(args.cols, args.group() * N);
  const int64_t splits = at_least(tiles_of(tiles, Body::kTiles), tiles_of(kEnoughBlocks, row_blocks(args)));
  args.splits = at_least(1, at_most(at_most(splits, tiles), kMaxGridY));
}

// Column threads of a block: as many as have work, at most a warp.
inline int32_t width_bits_for(int64_t accesses) {
  int32_t bits = 0;
  while (bits < 5 && (int64_t{1} << bits) < accesses) ++bits;
  return bits;
}
template <class Body, class Storage>
int64_t column_tiles(const StepArgs<Storage>& args) {
  return tiles_of(args.cols, args.width() * Body::N);
}

// Also places `row_clips` and `partial_sums` in `workspace` and returns the bytes of it that are used.
template <class Body, class Storage>
int64_t plan_backward(StepArgs<Storage>& args, void* workspace) {
  using A = acc_t<Storage>;
  args.aligned = is_aligned(args);
  args.group_bits = group_bits_for(args.cols, kVec<Storage>);
  args.splits = 1;
  args.width_bits = width_bits_for(tiles_of(args.cols, Body::N));
  args.row_clips = nullptr;
  args.partial_sums = nullptr;
  args.chunks = 1;
  args.chunk_rows = args.rows;
  if (args.rows == 0 || args.cols == 0) return 0;

  const int64_t height = kThreads >> args.width_bits;
  args.chunks = at_most(tiles_of(args.rows, height), tiles_of(kEnoughBlocks, column_tiles<Body>(args)));
  args.chunk_rows = tiles_of(tiles_of(args.rows, args.chunks), height) * height;
  args.chunks = tiles_of(args.rows, args.chunk_rows);

  char* base = static_cast<char*>(workspace);
  int64_t bytes = 0;
  if (args.force_clip.by_norm() || args.momentum_clip.by_norm()) {
    args.row_clips = reinterpret_cast<A*>(base + bytes);
    bytes += align_workspace(4 * args.rows * static_cast<int64_t>(sizeof(A)));
  }
  if (args.chunks > 1) {
    args.partial_sums = reinterpret_cast<A*>(base + bytes);
    bytes += align_workspace(Body::Sums::kCount * args.chunks * args.cols * static_cast<int64_t>(sizeof(A)));
  }
  return bytes;
}

// Backend::run<Body>(grid_x, grid_y, args) runs Body::run on every block of a grid and returns an error code,
// 0 = fine.
template <class Dynamics, class Parts, class Backend, class Storage>
int run_forward(Backend& backend, StepArgs<Storage> args) {
  using Body = StepForward<Storage, Dynamics, Parts>;
  if (args.rows == 0 || (args.cols == 0 && !Dynamics::scales)) return 0;
  plan_forward<Body>(args);
  return backend.template run<Body>(row_blocks(args), args.splits, args);
}

template <class Dynamics, class Parts, class Backend, class Storage>
int run_backward(Backend& backend, StepArgs<Storage> args, void* workspace) {
  using A = acc_t<Storage>;
  using Body = StepBackward<Storage, Dynamics, Parts>;
  if (args.cols == 0) return 0;
  plan_backward<Body>(args, workspace);
  if (args.row_clips != nullptr) {
    const int error = backend.template run<RowClipSums<Storage, Dynamics, Parts>>(row_blocks(args), 1, args);
    if (error != 0) return error;
  }
  const int error = backend.template run<Body>(column_tiles<Body>(args), args.chunks, args);
  if (error != 0 || args.partial_sums == nullptr) return error;

  typename ColumnSum<A>::Args sums = {args.chunks, args.cols, width_bits_for(args.cols), {}, {}};
  int count = 0;
  for (int i = 0; i < Body::Sums::kCount; ++i) {
    A* total = args.sums[Body::Sums::meaning(i)];
    if (total == nullptr) continue;
    sums.partial_sums[count] = args.partial_sums + i * args.chunks * args.cols;
    sums.sums[count++] = total;
  }
  return backend.template run<ColumnSum<A>>(tiles_of(args.cols, int64_t{1} << sums.width_bits), count, sums);
}

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
