// The whole backward pass of the unroll of a smooth potential: a block takes its rows back from t = T to 0.
// At every stored x_t the network's second-order products turn the kick's cotangent of F(x_t) into cotangents
// of x_t and of the weights.
#pragma once

#include "cuda/mlp/unroll.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

// dx and dv, cotangents of x_{t+1} and of what kick t + 1 begins with, become those of x_t, but for the
// kick's part, and of v_t. Adds to the sums of drift t and of the noise behind it.
template <class Dynamics>
ADE_HD void back_to_kick(Dynamics& dynamics, const MlpUnrollBackward& launch, const MlpTurn& turn, int64_t t,
                         const MlpSums& at, float* sums, float* dx, float* dv, float* terms) {
  const int64_t dim = launch.shape.dim, all = launch.dynamics.rows * dim, first = turn.first * dim;
  if (t < launch.dynamics.steps) {
    const float* const x = static_cast<const float*>(launch.x) + t * all + first;
    const float* const v = static_cast<const float*>(launch.v) + t * all + first;
    if (launch.dynamics.noise) {
      dynamics.refresh_position_vjp(t, x, v, dynamics.noise(t, turn.first), dx, terms);
      dynamics.add_sums(terms, sums + at.noise_x + t * dim, nullptr);
    }
    dynamics.drift_vjp(t, x, v, dx, dv, terms);
    dynamics.add_sums(terms, sums + at.drift + t * dim,
                      launch.dlog_stretch ? sums + at.stretch + t * dim : nullptr);
  }
  if (launch.dv_all) dynamics.add(static_cast<const float*>(launch.dv_all) + t * all + first, dv);
  if (launch.dynamics.noise && t > 0) {
    dynamics.refresh_momentum_vjp(dynamics.noise(t - 1, turn.first), dv, terms);
    dynamics.add_sums(terms, sums + at.noise_v + (t - 1) * dim, nullptr);
  }
}

// After step t, for diagnostics: dx and dv are the cotangents of x_t and of v_{t-1}.
template <class Dynamics>
ADE_HD void write_adjoint(Dynamics& dynamics, const MlpUnrollBackward& launch, const MlpTurn& turn, int64_t t,
                          const float* dx, const float* dv) {
  if (launch.adjoint == nullptr) return;
  float* const norms = static_cast<float*>(launch.adjoint) + 2 * t * launch.dynamics.rows + turn.first;
  dynamics.norms(dx, norms);
  dynamics.norms(dv, norms + launch.dynamics.rows);
}

// u: cotangent of the force, then of F. Adds to the sums of what makes the one of the other.
template <class Dynamics>
ADE_HD void add_bridge_sums(Dynamics& dynamics, const MlpUnrollBackward& launch, const MlpPlan& plan,
                            int64_t t, const float* x, const float* gradient, float* u, float* terms,
                            float* sums) {
  const int64_t at = t * plan.shape.dim;
  dynamics.force_vjp(t, x, gradient, u, terms);
  if (launch.dpull) dynamics.add_sums(terms, sums + plan.sums.pull + at, sums + plan.sums.centre + at);
  if (launch.dscale)
    dynamics.add_sums(terms + 2 * Dynamics::kRows * plan.shape.dim, sums + plan.sums.scale + at, nullptr);
}

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
    const float* const gradient = tile.memory.template at<float>(plan.gradient);
    float* const force = tile.memory.template at<float>(plan.force);
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
        back_to_kick(dynamics, launch, turn, t, plan.sums, sums, dx, dv, terms);
        tile.set_input(x + t * all);
        mlp::first_order(tile, tile.want);
        const float* const v_before = t == 0 ? static_cast<const float*>(launch.v0) + at : v + (t - 1) * all;
        if (dynamics.bridged()) dynamics.force(t, x + t * all, gradient, force);
        dynamics.kick_vjp(t, force, dv, u, terms);
        dynamics.momentum_vjp(t, v_before, dv, terms);
        dynamics.add_sums(terms, sums + plan.sums.kick + t * dim,
                          launch.dlog_decay ? sums + plan.sums.decay + t * dim : nullptr);
        if (tile.want.tangent) {
          if (dynamics.bridged()) {
            dynamics.pull_vjp(t, u, dx);
            add_bridge_sums(dynamics, launch, plan, t, x + t * all, gradient, u, terms, sums);
          }
          tile.set_dgradient(u);
          mlp::second_order(tile, tile.want);
        }
        write_adjoint(dynamics, launch, turn, t, dx, dv);
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
