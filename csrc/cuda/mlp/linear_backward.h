// The backward pass of the unroll of a piecewise-linear potential. Its Hessian is 0 almost everywhere, so the
// cotangents of x_t and v_t do not depend on the potential: one launch takes them back from t = T to 0 and
// stores the momenta's. Then all (T + 1) B points x_t are independent of each other: another launch takes
// them through the network, in any order, for the gradients of the weights and of the kicks. A Gaussian's
// Hessian is a constant; only where a clip acts on the force does the first launch need ∇f, of which the op
// mlp_field has computed all before.
#pragma once

#include "cuda/mlp/unroll_backward.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

struct MlpLinearBackward : MlpUnrollBackward {
  float* cotangents;  // [T+1, B, D] of v_t, each after its kick
  float* gradients;   // [T+1, B, D] F(x_t), or null

  ADE_HD bool pulls() const { return dynamics.pull != nullptr && !stopped; }
  ADE_HD bool needs_gradients() const { return pulls() && dynamics.grad_clip.mode != kClipNone; }
};

// The first launch.
struct MlpCotangentsArgs {
  MlpLinearBackward launch;
  int64_t tiles, blocks;
  float* block_sums;  // [blocks, sums.size]
  MlpSums sums;
};

// With or without a pull, whose clip would cost the others registers.
template <bool kPulls>
struct MlpCotangents {
  using Args = MlpCotangentsArgs;
  using State = MlpState;
  using Shared = MlpShared;
  static constexpr int kBlocks = kPulls ? 3 : 4;  // registers for none to be spilled
  static constexpr int kRows = kTile;

  // Of a block: dx and dv [rows, D], terms [2, rows, D]; with a pull, u and the force [rows, D].
  static int64_t memory_bytes(int64_t dim) { return (kPulls ? 6 : 4) * kRows * dim * 4; }

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
      const float* const v = static_cast<const float*>(launch.v) + at;
      dynamics.rows = turn.rows;
      dynamics.copy(static_cast<const float*>(launch.dx_end) + at, dx);
      dynamics.copy(static_cast<const float*>(launch.dv_end) + at, dv);
      block.sync();
      for (int64_t t = steps; t >= 0; --t) {
        back_to_kick(dynamics, launch, turn, t, args->sums, sums, dx, dv, terms);
        dynamics.copy(dv, launch.cotangents + t * all + at);
        block.sync();
        if constexpr (kPulls) {
          float* const u = terms + 2 * kRows * dim;
          float* const force = u + kRows * dim;
          const float* const x = static_cast<const float*>(launch.x) + t * all + at;
          if (launch.gradients) dynamics.force(t, x, launch.gradients + t * all + at, force);
          // Unclipped, any number may stand for the force.
          dynamics.kick_vjp(t, launch.gradients ? force : dv, dv, u, terms);
          dynamics.pull_vjp(t, u, dx);
        }
        const float* const v_before = t == 0 ? static_cast<const float*>(launch.v0) + at : v + (t - 1) * all;
        dynamics.momentum_vjp(t, v_before, dv, terms);
        dynamics.add_sums(terms, nullptr, launch.dlog_decay ? sums + args->sums.decay + t * dim : nullptr);
        write_adjoint(dynamics, launch, turn, t, dx, dv);
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
    const float* const gradient = tile.memory.template at<float>(plan.gradient);
    float* const force = tile.memory.template at<float>(plan.force);
    float* const sums = tile.sums();

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
      const float* const x = static_cast<const float*>(launch.x) + at;
      if (dynamics.bridged()) dynamics.force(t, x, gradient, force);
      dynamics.kick_vjp(t, force, dv, u, terms);
      dynamics.add_sums(terms, sums + plan.sums.kick + t * dim, nullptr);
      if (dynamics.bridged() && !launch.stopped)
        add_bridge_sums(dynamics, launch, plan, t, x, gradient, u, terms, sums);
      if (!tile.want.tangent) continue;
      tile.set_dgradient(u);
      mlp::second_order(tile, tile.want);
    }
  }
};

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
