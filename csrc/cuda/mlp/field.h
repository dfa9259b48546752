// The field on its own: value and gradient of the potential, and the vector-Jacobian product of both.
#pragma once

#include "cuda/mlp/unroll.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

template <int S, int R>
struct MlpFieldBody {
  using Args = MlpArgs<MlpField>;
  using State = MlpState;
  using Shared = MlpShared;
  static constexpr int kBlocks = R == 1 ? 2 : 1;

  template <class Block>
  static ADE_HD void run(Block& block, const Args* args) {
    const MlpField& launch = args->launch;
    const MlpPlan& plan = args->plan;
    MlpTile<S, R, Block> tile(block, plan);
    tile.prepare();
    tile.want.value = launch.value != nullptr;
    tile.want.gradient = launch.grad != nullptr;
    for (int64_t index = block.x(); index < plan.tiles; index += plan.blocks) {
      const MlpTurn turn(index, tile.kRows, plan.rows);
      const int64_t at = turn.first * plan.shape.dim;
      tile.rows = turn.rows;
      tile.set_input(static_cast<const float*>(launch.x) + at);
      mlp::first_order(tile, tile.want);
      if (launch.value) tile.store_value(static_cast<float*>(launch.value) + turn.first);
      if (!launch.grad) continue;
      copy_floats(block, tile.memory.template at<float>(plan.gradient), turn.rows * plan.shape.dim,
                  static_cast<float*>(launch.grad) + at);
      block.sync();
    }
  }
};

template <int S, int R>
struct MlpFieldBackwardBody {
  using Args = MlpArgs<MlpFieldBackward>;
  using State = MlpState;
  using Shared = MlpShared;
  static constexpr int kBlocks = R == 1 ? 2 : 1;

  template <class Block>
  static ADE_HD void run(Block& block, const Args* args) {
    const MlpFieldBackward& launch = args->launch;
    const MlpPlan& plan = args->plan;
    const bool weights = launch.dweights.weight[0] != nullptr;
    MlpTile<S, R, Block> tile(block, plan);
    tile.with_value = launch.dvalue != nullptr;
    tile.want.curvature = (launch.dgrad != nullptr && !plan.linear()) || tile.with_value;
    tile.want.tangent = launch.dgrad != nullptr && (tile.want.curvature || weights);
    tile.want.weights = weights && (tile.want.tangent || tile.want.curvature);  // else their gradients are 0
    tile.prepare();
    tile.clear_sums();
    float* const dx = tile.memory.template at<float>(plan.dx);
    for (int64_t index = block.x(); index < plan.tiles; index += plan.blocks) {
      const MlpTurn turn(index, tile.kRows, plan.rows);
      const int64_t at = turn.first * plan.shape.dim;
      const int size = turn.rows * plan.shape.dim;
      tile.rows = turn.rows;
      block.each([=](int t, MlpState&) {
        for (int i = t; i < size; i += kThreads) dx[i] = 0;
      });
      if (tile.with_value)
        copy_floats(block, static_cast<const float*>(launch.dvalue) + turn.first, turn.rows,
                    tile.memory.template at<float>(plan.dvalue));
      tile.set_input(static_cast<const float*>(launch.x) + at);
      if (tile.want.tangent) tile.set_dgradient(static_cast<const float*>(launch.dgrad) + at);
      mlp::first_order(tile, tile.want);
      mlp::second_order(tile, tile.want);
      copy_floats(block, dx, size, static_cast<float*>(launch.dx) + at);
      block.sync();
    }
  }
};

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
