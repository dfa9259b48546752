// W_l for the products along layer l - 1 and along layer l: planes of tiles in block order (cuda/warp.h),
// padded with zeros.
#pragma once

#include "cuda/mlp/dynamics.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

struct MlpPackArgs {
  MlpPlan plan;
  MlpWeights weights;
};

// Block (x, y): tiles of layer y + 1, a warp each.
template <int S>
struct MlpPack {
  using Args = MlpPackArgs;
  using State = MlpState;
  struct Shared {};
  static constexpr int kBlocks = 2;

  template <class Block>
  static ADE_HD void run(Block& block, const Args* args) {
    const int l = static_cast<int>(block.y()) + 1;
    const int64_t first = block.x() * kWarps;
    block.each_warp([=](auto& warp) { tile(warp, args, l, first + warp.index()); });
    block.sync();
  }

 private:
  template <class Warp>
  static ADE_HD void tile(Warp& warp, const Args* args, int l, int64_t index) {
    const MlpPlan& plan = args->plan;
    const int across = plan.columns(l - 1);
    if (index >= int64_t{1} * plan.columns(l) * across) return;
    const int row0 = static_cast<int>(index / across) * kTile;
    const int column0 = static_cast<int>(index % across) * kTile;
    const float* const w = static_cast<const float*>(args->weights.weight[l - 1]);
    const int rows = plan.width(l), columns = plan.width(l - 1);
    Quad* const to = plan.packed + plan.weight[l] + index * kWarp;
    warp.each([&](int lane) {
      Eight e;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int row = row0 + tile_row(lane, i), column = column0 + tile_column(lane, i);
        e.v[i] = row < rows && column < columns ? w[int64_t{row} * columns + column] : 0.0f;
      }
      store_block_planes<S>(to, plan.plane, lane, e);
    });
  }
};

inline int64_t pack_blocks(const MlpPlan& plan) {
  int64_t blocks = 0;
  for (int l = 1; l <= plan.shape.layers; ++l) {
    const int64_t tiles = int64_t{1} * plan.columns(l) * plan.columns(l - 1);
    const int64_t own = (tiles + kWarps - 1) / kWarps;
    blocks = own > blocks ? own : blocks;
  }
  return blocks;
}

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
