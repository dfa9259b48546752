// The backward pass of the unroll of a piecewise-linear potential. Its Hessian is 0 almost everywhere, so the
// cotangents of x_t and v_t do not depend on the potential: one launch takes them back from t = T to 0 and
// stores the momenta's. Then all (T + 1) B points x_t are independent of each other: another launch takes
// them through the network, in any order, for the gradients of the weights and of the kicks.
#pragma once

#include "cuda/mlp/unroll.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

struct MlpLinearBackward : MlpUnrollBackward {
  float* cotangents;  // [T+1, B, D] of v_t, each after its kick
};

// The first launch.
struct MlpCotangentsArgs {
  MlpLinearBackward launch;
  int64_t tiles, blocks;
  float* block_sums;  // [blocks, sums.size]
  MlpSums sums;
};

struct MlpCotangents {
  using Args = MlpCotangentsArgs;
  using State = MlpState;
  using Shared = MlpShared;
  static constexpr int kBlocks = 4;
  static constexpr int kRows = kTile;

  // Of a block: dx and dv [rows, D], terms [2, rows, D].
  static int64_t memory_bytes(int64_t dim) { return 4 * kRows * dim * 4; }

  template <class Block>
  static ADE_HD void run(Block& block, const Args* args) {
    const MlpLinearBackward& launch = args->launch;
    const int dim = launch.shape.dim;
    const int64_t steps = launch.dynamics.steps, all = launch.dynamics.rows * dim, size = args->sums.size;
    MlpDynamicsRows<1, Block> dynamics(block, launch.dynamics, dim);
    float* const dx = reinterpret_cast<float*>(block.memory());
    float* const dv = dx + kRows * dim;
    float* const terms = dv + kRows * dim;
    float* const sums = args->block_sums + block.x() * size;
    block.each([=](int t, MlpState&) {
      for (int64_t i = t; i < size; i += kThreads) sums[i] = 0;
    });
    block.sync();
    for (int64_t index = block.x(); index < args->tiles; index += args->blocks) {
      const MlpTurn turn(index, kRows, launch.dynamics.rows);
      const int64_t at = turn.first * dim;
      const float* const x = static_cast<const float*>(launch.x) + at;
      const float* const v = static_cast<const float*>(launch.v) + at;
      dynamics.rows = turn.rows;
      dynamics.copy(static_cast<const float*>(launch.dx_end) + at, dx);
      dynamics.copy(static_cast<const float*>(launch.dv_end) + at, dv);
      block.sync();
      for (int64_t t = steps; t >= 0; --t) {
        if (t < steps) {
          dynamics.drift_vjp(t, x + t * all, v + t * all, dx, dv, terms);
          dynamics.add_sums(terms, sums + args->sums.drift + t * dim,
                            launch.dlog_stretch ? sums + args->sums.stretch + t * dim : nullptr);
        }
        dynamics.copy(dv, launch.cotangents + t * all + at);
        block.sync();
        const float* const v_before = t == 0 ? static_cast<const float*>(launch.v0) + at : v + (t - 1) * all;
        dynamics.momentum_vjp(t, v_before, dv, terms);
        dynamics.add_sums(terms, nullptr, launch.dlog_decay ? sums + args->sums.decay + t * dim : nullptr);
      }
      dynamics.copy(dx, static_cast<float*>(launch.dx0) + at);
      dynamics.copy(dv, static_cast<float*>(launch.dv0) + at);
      block.sync();
    }
  }
};

// The second. A tile of rows is of one t.
template <int S, int R>
struct MlpLinearBackwardBody {
  using Args = MlpArgs<MlpLinearBackward>;
  using State = MlpState;
  using Shared = MlpShared;
  static constexpr int kBlocks = R == 1 ? 2 : 1;

  template <class Block>
  static ADE_HD void run(Block& block, const Args* args) {
    const MlpLinearBackward& launch = args->launch;
    const MlpPlan& plan = args->plan;
    const int64_t dim = plan.shape.dim, all = plan.rows * dim;
    MlpTile<S, R, Block, Phi::kLinear> tile(block, plan);
    MlpDynamicsRows<R, Block> dynamics(block, launch.dynamics, plan.shape.dim);
    const int64_t bit_stride = tile.bit_stride(), tiles = plan.tiles / (launch.dynamics.steps + 1);
    float* const dv = tile.memory.template at<float>(plan.v);
    float* const u = tile.memory.template at<float>(plan.dgradient);
    float* const terms = tile.memory.template at<float>(plan.terms);
    const float* const force = tile.memory.template at<float>(plan.gradient);
    float* const kick_sums = tile.sums() + plan.sums.kick;

    tile.want.gradient = true;
    tile.want.weights = launch.dweights.weight[0] != nullptr;
    tile.want.tangent = !launch.stopped && tile.want.weights;
    tile.want.curvature = false;
    tile.want.bits_kept = launch.bits != nullptr;
    tile.prepare();
    tile.clear_sums();
    for (int64_t index = block.x(); index < plan.tiles; index += plan.blocks) {
      const int64_t t = index / tiles;
      const MlpTurn turn(index % tiles, tile.kRows, plan.rows);
      const int64_t at = t * all + turn.first * dim;
      tile.rows = dynamics.rows = turn.rows;
      tile.bits = launch.bits ? launch.bits + (t * plan.rows + turn.first) * bit_stride : nullptr;
      dynamics.copy(launch.cotangents + at, dv);
      tile.set_input(static_cast<const float*>(launch.x) + at);
      mlp::first_order(tile, tile.want);
      dynamics.force_vjp(t, force, dv, u, terms);
      dynamics.add_sums(terms, kick_sums + t * dim, nullptr);
      if (!tile.want.tangent) continue;
      tile.set_dgradient(u);
      mlp::second_order(tile, tile.want);
    }
  }
};

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
