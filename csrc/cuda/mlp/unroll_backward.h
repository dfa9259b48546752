// The whole backward pass of the unroll of a smooth potential: a block takes its rows back from t = T to 0.
// At every stored x_t the network's second-order products turn the kick's cotangent of F(x_t) into cotangents
// of x_t and of the weights.
#pragma once

#include "cuda/mlp/unroll.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

template <int S, int R>
struct MlpUnrollBackwardBody {
  using Args = MlpArgs<MlpUnrollBackward>;
  using State = MlpState;
  using Shared = MlpShared;
  static constexpr int kBlocks = R == 1 && S == 1 ? 2 : 1;  // registers for none to be spilled

  template <class Block>
  static ADE_HD void run(Block& block, const Args* args) {
    const MlpUnrollBackward& launch = args->launch;
    const MlpPlan& plan = args->plan;
    const int64_t dim = plan.shape.dim, steps = launch.dynamics.steps, all = plan.rows * dim;
    MlpTile<S, R, Block, Phi::kSmooth> tile(block, plan);
    MlpDynamicsRows<R, Block> dynamics(block, launch.dynamics, plan.shape.dim);
    float* const dx = tile.memory.template at<float>(plan.dx);
    float* const dv = tile.memory.template at<float>(plan.v);
    float* const u = tile.memory.template at<float>(plan.dgradient);
    float* const terms = tile.memory.template at<float>(plan.terms);
    const float* const force = tile.memory.template at<float>(plan.gradient);
    float* const sums = tile.sums();

    tile.want.gradient = true;
    tile.want.weights = launch.dweights.weight[0] != nullptr;
    tile.want.tangent = tile.want.curvature = !launch.stopped;
    tile.prepare();
    tile.clear_sums();
    for (int64_t index = block.x(); index < plan.tiles; index += plan.blocks) {
      const MlpTurn turn(index, tile.kRows, plan.rows);
      const int64_t at = turn.first * dim;
      const float* const x = static_cast<const float*>(launch.x) + at;
      const float* const v = static_cast<const float*>(launch.v) + at;
      tile.rows = dynamics.rows = turn.rows;
      dynamics.copy(static_cast<const float*>(launch.dx_end) + at, dx);
      dynamics.copy(static_cast<const float*>(launch.dv_end) + at, dv);
      block.sync();
      for (int64_t t = steps; t >= 0; --t) {
        if (t < steps) {
          dynamics.drift_vjp(t, x + t * all, v + t * all, dx, dv, terms);
          dynamics.add_sums(terms, sums + plan.sums.drift + t * dim,
                            launch.dlog_stretch ? sums + plan.sums.stretch + t * dim : nullptr);
        }
        tile.set_input(x + t * all);
        mlp::first_order(tile, tile.want);
        const float* const v_before = t == 0 ? static_cast<const float*>(launch.v0) + at : v + (t - 1) * all;
        dynamics.force_vjp(t, force, dv, u, terms);
        dynamics.momentum_vjp(t, v_before, dv, terms);
        dynamics.add_sums(terms, sums + plan.sums.kick + t * dim,
                          launch.dlog_decay ? sums + plan.sums.decay + t * dim : nullptr);
        if (!tile.want.tangent) continue;
        tile.set_dgradient(u);
        mlp::second_order(tile, tile.want);
      }
      dynamics.copy(dx, static_cast<float*>(launch.dx0) + at);
      dynamics.copy(dv, static_cast<float*>(launch.dv0) + at);
      block.sync();
    }
  }
};

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
