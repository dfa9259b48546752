// The whole unroll: a block takes its rows through all T + 1 kicks and T drifts before it takes the next.
#pragma once

#include "cuda/mlp/dynamics.h"
#include "cuda/mlp/tile.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

// Of every MLP kernel: S planes, R tiles of rows.
struct MlpShared {};

// The rows of a block's turn.
struct MlpTurn {
  int64_t first;
  int rows;

  ADE_HD MlpTurn(int64_t tile, int block_rows, int64_t all) : first(tile * block_rows) {
    rows = static_cast<int>(all - first < block_rows ? all - first : block_rows);
  }
};

template <int S, int R>
struct MlpUnrollBody {
  using Args = MlpArgs<MlpUnroll>;
  using State = MlpState;
  using Shared = MlpShared;
  static constexpr int kBlocks = R == 1 ? 2 : 1;

  template <class Block>
  static ADE_HD void run(Block& block, const Args* args) {
    const MlpUnroll& launch = args->launch;
    const MlpPlan& plan = args->plan;
    const int64_t dim = plan.shape.dim, steps = launch.dynamics.steps, all = plan.rows * dim;
    MlpTile<S, R, Block> tile(block, plan);
    MlpDynamicsRows<R, Block> dynamics(block, launch.dynamics, plan.shape.dim);
    const int64_t bit_stride = tile.bit_stride();
    float* const x = tile.memory.template at<float>(plan.x);
    float* const v = tile.memory.template at<float>(plan.v);
    float* const force = tile.memory.template at<float>(plan.gradient);
    tile.prepare();
    tile.want.gradient = true;
    tile.want.value = launch.value != nullptr;
    for (int64_t index = block.x(); index < plan.tiles; index += plan.blocks) {
      const MlpTurn turn(index, tile.kRows, plan.rows);
      const int64_t at = turn.first * dim;
      tile.rows = dynamics.rows = turn.rows;
      dynamics.copy(static_cast<const float*>(launch.x0) + at, x);
      dynamics.copy(static_cast<const float*>(launch.v0) + at, v);
      block.sync();
      for (int64_t t = 0;; ++t) {
        tile.set_input(x);
        if (launch.x) dynamics.copy(x, static_cast<float*>(launch.x) + t * all + at);
        tile.bits_out = launch.bits ? launch.bits + (t * plan.rows + turn.first) * bit_stride : nullptr;
        mlp::first_order(tile, tile.want);
        if (launch.value) {
          dynamics.copy(force, static_cast<float*>(launch.gradient) + t * all + at);
          tile.store_value(static_cast<float*>(launch.value) + t * plan.rows + turn.first);
        }
        if (dynamics.bridged()) dynamics.force(t, x, force, force);
        float* const keep = launch.v ? static_cast<float*>(launch.v) + t * all + at : nullptr;
        const float* const noise = t > 0 ? dynamics.noise(t - 1, turn.first) : nullptr;
        dynamics.kick(t, force, v, noise ? nullptr : keep);
        if (noise) dynamics.refresh_momentum(t - 1, noise, v, keep);
        if (t == steps) break;
        dynamics.drift(t, v, x);
        if (launch.dynamics.noise) dynamics.refresh_position(t, dynamics.noise(t, turn.first), x);
      }
      dynamics.copy(x, static_cast<float*>(launch.x_end) + at);
      dynamics.copy(v, static_cast<float*>(launch.v_end) + at);
      block.sync();
    }
  }
};

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
