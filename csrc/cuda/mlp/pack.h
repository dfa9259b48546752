// W_l and W_lᵀ as right operands of the products along layer l - 1 and along layer l: planes of tiles in
// fragment order, padded with zeros.
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
    const int out = plan.columns(l), in = plan.columns(l - 1);
    if (index >= int64_t{2} * out * in) return;
    const bool transposed = index >= int64_t{1} * out * in;
    const int64_t tile = transposed ? index - int64_t{1} * out * in : index;
    const int across = transposed ? out : in, row0 = static_cast<int>(tile / across) * kTile,
              column0 = static_cast<int>(tile % across) * kTile;
    const float* const w = static_cast<const float*>(args->weights.weight[l - 1]);
    const int rows = plan.width(l), columns = plan.width(l - 1);
    Quad* const to = plan.packed + (transposed ? plan.backward[l] : plan.forward[l]) + tile * kWarp;
    warp.each([&](int lane) {
      Eight e;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        // A right operand has the pairs {k, k + 8} of a column next to each other: those are pairs 0 and 2.
        const int from = (i / 2 == 1 ? 4 : i / 2 == 2 ? 2 : i / 2 * 2) + i % 2;
        const int a = row0 + tile_row(lane, from), b = column0 + tile_column(lane, from);
        const int row = transposed ? b : a, column = transposed ? a : b;
        e.v[i] = row < rows && column < columns ? w[int64_t{row} * columns + column] : 0.0f;
      }
      store_planes<S>(to, plan.plane, lane, e);
    });
  }
};

inline int64_t pack_blocks(const MlpPlan& plan) {
  int64_t blocks = 0;
  for (int l = 1; l <= plan.shape.layers; ++l) {
    const int64_t tiles = int64_t{2} * plan.columns(l) * plan.columns(l - 1);
    const int64_t own = (tiles + kWarps - 1) / kWarps;
    blocks = own > blocks ? own : blocks;
  }
  return blocks;
}

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
