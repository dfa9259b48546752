// The field on its own: value and gradient of the potential, and the vector-Jacobian product of both.
#pragma once

#include "cuda/mlp/unroll.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

template <class Launch>
ADE_HD affine_force::Coefficients<float> gaussian_of(const Launch& launch, int d) {
  return affine_force::Coefficients<float>::at(nullptr, launch.pull, launch.centre, 0, launch.shape.dim, d);
}

// The Gaussian beside f, and the shift: added to the value that the turn's rows have, and to gradient [rows,
// D].
template <class Block>
ADE_HD void add_gaussian(Block& block, const MlpField& launch, const MlpTurn& turn, float* gradient) {
  const int dim = launch.shape.dim, rows = turn.rows;
  const float* const x = static_cast<const float*>(launch.x) + turn.first * dim;
  float* const value = launch.value ? static_cast<float*>(launch.value) + turn.first : nullptr;
  const MlpField* const from = &launch;
  block.each([=](int t, MlpState&) {
    if (t >= rows || value == nullptr) return;
    float sum = value[t];
    for (int d = 0; d < dim; ++d) sum += affine_force::value(x[t * dim + d], gaussian_of(*from, d));
    value[t] = sum + static_cast<float>(from->value_shift);
  });
  block.each([=](int t, MlpState&) {
    for (int i = t; from->grad != nullptr && i < rows * dim; i += kThreads)
      gradient[i] = affine_force::force(gradient[i], x[i], gaussian_of(*from, i % dim));
  });
  block.sync();
}
// Adds to dx [rows, D].
template <class Block>
ADE_HD void add_gaussian_vjp(Block& block, const MlpFieldBackward& launch, const MlpTurn& turn, float* dx) {
  const int dim = launch.shape.dim, rows = turn.rows;
  const int64_t first = turn.first;
  const MlpFieldBackward* const from = &launch;
  block.each([=](int t, MlpState&) {
    const float* const x = static_cast<const float*>(from->x) + first * dim;
    const float* const dvalue = static_cast<const float*>(from->dvalue);
    const float* const dgrad = static_cast<const float*>(from->dgrad);
    for (int i = t; i < rows * dim; i += kThreads) {
      const auto by = gaussian_of(*from, i % dim);
      if (dvalue) dx[i] += affine_force::value_vjp(dvalue[first + i / dim], x[i], by);
      if (dgrad) dx[i] += affine_force::force_vjp(dgrad[first * dim + i], 0.0f, 0.0f, by).dx;
    }
  });
  block.sync();
}

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
      if (launch.pull || launch.value_shift != 0)
        add_gaussian(block, launch, turn, tile.memory.template at<float>(plan.gradient));
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
      if (launch.pull) add_gaussian_vjp(block, launch, turn, dx);
      copy_floats(block, dx, size, static_cast<float*>(launch.dx) + at);
      block.sync();
    }
  }
};

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
