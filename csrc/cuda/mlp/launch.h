// From the arguments of launch/mlp.h to kernels: pack the weights, run the blocks, add their sums.
#pragma once

#include "cuda/mlp/field.h"
#include "cuda/mlp/linear_backward.h"
#include "cuda/mlp/pack.h"
#include "cuda/mlp/reduce.h"
#include "cuda/mlp/unroll_backward.h"
#include "cuda/workspace.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

template <class Launch>
struct MlpBodyOf;
template <>
struct MlpBodyOf<MlpUnroll> {
  template <int S, int R>
  using Body = MlpUnrollBody<S, R>;
  static constexpr bool sums = false;
};
template <>
struct MlpBodyOf<MlpUnrollBackward> {
  template <int S, int R>
  using Body = MlpUnrollBackwardBody<S, R>;
  static constexpr bool sums = true;
};
template <>
struct MlpBodyOf<MlpLinearBackward> {
  template <int S, int R>
  using Body = MlpLinearBackwardBody<S, R>;
  static constexpr bool sums = true;
};
template <>
struct MlpBodyOf<MlpField> {
  template <int S, int R>
  using Body = MlpFieldBody<S, R>;
  static constexpr bool sums = false;
};
template <>
struct MlpBodyOf<MlpFieldBackward> {
  template <int S, int R>
  using Body = MlpFieldBackwardBody<S, R>;
  static constexpr bool sums = true;
};

// How often a kernel takes all rows through the network, independently of each other.
template <class Launch>
int64_t times_of(const Launch&) {
  return 1;
}
inline int64_t times_of(const MlpLinearBackward& a) { return a.dynamics.steps + 1; }

inline MlpSums sums_of(const MlpPlan& plan, const MlpFieldBackward& a) {
  return plan_sums(plan, {use_of(a).weights, false, false}, {});
}
inline MlpSums sums_of(const MlpPlan& plan, const MlpUnrollBackward& a) {
  return plan_sums(plan, {use_of(a).weights, true, true}, a.dynamics);
}
inline MlpSums sums_of(const MlpPlan& plan, const MlpLinearBackward& a) {
  return plan_sums(plan, {use_of(a).weights, true, false}, a.dynamics);
}

template <class Launch>
MlpPlan plan_mlp(WorkspaceParts& workspace, const Launch& from, int64_t memory_limit) {
  constexpr bool kSums = MlpBodyOf<Launch>::sums;
  MlpPlan plan = plan_network(from);
  const int64_t times = times_of(from);
  const int wide = row_tiles(plan.rows, times);
  plan_buffers(plan, use_of(from), from.precision, wide, BlockMemory(memory_limit));
  plan.own_bytes = (plan.own_bytes + 255) / 256 * 256;
  const int64_t block_rows = int64_t{wide} * kTile, limit = (kSums ? kBackwardTiles : kForwardTiles) / wide;
  plan.tiles = (plan.rows + block_rows - 1) / block_rows * times;
  plan.blocks = plan.tiles < limit ? plan.tiles : limit;

  plan.packed = workspace.take<Quad>(from.precision * plan.plane * static_cast<int64_t>(sizeof(Quad)));
  plan.own = workspace.take<char>(plan.blocks * plan.own_bytes);
  if constexpr (kSums) {
    plan.sums = sums_of(plan, from);
    plan.block_sums = workspace.take<float>(plan.blocks * plan.sums.size * 4);
  }
  return plan;
}

// Where the first launch needs it: the op that evaluates ∇f at all states; from.gradients too.
inline MlpField plan_gradients(WorkspaceParts& workspace, MlpLinearBackward& from) {
  MlpField field = {};
  if (!from.needs_gradients()) return field;
  field.shape = from.shape;
  field.precision = from.precision;
  field.weights = from.weights;
  field.rows = (from.dynamics.steps + 1) * from.dynamics.rows;
  field.x = from.x;
  from.gradients = workspace.take<float>(field.rows * from.shape.dim * 4);
  field.grad = from.gradients;
  return field;
}

// The first launch of a piecewise-linear potential's backward pass; from.cotangents too.
inline MlpCotangentsArgs plan_cotangents(WorkspaceParts& workspace, MlpLinearBackward& from) {
  const int64_t rows = from.dynamics.rows, steps = from.dynamics.steps;
  from.cotangents = workspace.take<float>((steps + 1) * rows * from.shape.dim * 4);
  MlpCotangentsArgs args = {};
  args.tiles = (rows + kTile - 1) / kTile;
  args.blocks = args.tiles < kBackwardTiles ? args.tiles : kBackwardTiles;
  args.sums = plan_sums(plan_network(from), {false, false, true}, from.dynamics);
  args.block_sums = workspace.take<float>(args.blocks * args.sums.size * 4);
  args.launch = from;
  return args;
}

// The results that are sums over blocks.
class MlpReductions {
 public:
  // That follow are `blocks` blocks' sums.
  void of(const float* block_sums, int64_t blocks, int64_t stride) {
    from_ = block_sums;
    blocks_ = blocks;
    stride_ = stride;
  }
  void add(void* to, int64_t first, int64_t rows, int64_t columns, int across = 0, int64_t terms = 1) {
    if (to == nullptr) return;
    args_.sums[args_.count++] = {static_cast<float*>(to),
                                 from_ + first,
                                 blocks_,
                                 stride_,
                                 static_cast<int32_t>(rows),
                                 static_cast<int32_t>(columns),
                                 across,
                                 static_cast<int32_t>(terms)};
    largest_ = rows * columns > largest_ ? rows * columns : largest_;
  }
  void add_weights(const MlpPlan& plan, const MlpWeightGradients& to) {
    const int layers = plan.shape.layers;
    for (int l = 1; l <= layers; ++l) {
      add(to.weight[l - 1], plan.sums.weight[l], plan.width(l), plan.width(l - 1), plan.columns(l - 1));
      add(to.bias[l - 1], plan.sums.bias[l], 1, plan.width(l));
    }
    add(to.weight[layers], plan.sums.out, 1, plan.width(layers));
    add(to.bias[layers], plan.sums.out_bias, 1, 1);
  }
  void add_kicks(const MlpSums& sums, const MlpUnrollBackward& to) {
    const int64_t kicks = to.dynamics.steps + 1, dim = to.shape.dim;
    add(to.dkick, sums.kick, kicks, dim);
    add(to.dscale, sums.scale, kicks, 1, 0, dim);
    add(to.dpull, sums.pull, kicks, dim);
    add(to.dcentre, sums.centre, kicks, dim);
  }
  void add_others(const MlpSums& sums, const MlpUnrollBackward& to) {
    const int64_t steps = to.dynamics.steps, dim = to.shape.dim;
    add(to.ddrift, sums.drift, steps, dim);
    add(to.dlog_decay, sums.decay, steps + 1, dim);
    add(to.dlog_stretch, sums.stretch, steps, dim);
    add(to.dnoise_v, sums.noise_v, steps, dim);
    add(to.dnoise_x, sums.noise_x, steps, dim);
  }

  template <class Backend>
  int run(Backend& backend) const {
    if (args_.count == 0) return 0;
    return backend.template run<MlpReduce>((largest_ + kThreads - 1) / kThreads, args_.count, args_);
  }

 private:
  MlpReduceArgs args_ = {};
  const float* from_ = nullptr;
  int64_t blocks_ = 0, stride_ = 0, largest_ = 0;
};

inline void add_sums(MlpReductions& to, const MlpPlan& plan, const MlpFieldBackward& from) {
  to.add_weights(plan, from.dweights);
}
inline void add_sums(MlpReductions& to, const MlpPlan& plan, const MlpLinearBackward& from) {
  to.add_weights(plan, from.dweights);
  to.add_kicks(plan.sums, from);
}
inline void add_sums(MlpReductions& to, const MlpPlan& plan, const MlpUnrollBackward& from) {
  to.add_weights(plan, from.dweights);
  to.add_kicks(plan.sums, from);
  to.add_others(plan.sums, from);
}

template <int S, int R, class Backend, class Launch>
int run_mlp(Backend& backend, const Launch& from, const MlpPlan& plan) {
  using Body = typename MlpBodyOf<Launch>::template Body<S, R>;
  if (plan.rows == 0) return 0;
  const int error =
      backend.template run<MlpPack<S>>(pack_blocks(plan), plan.shape.layers, {plan, from.weights});
  if (error != 0) return error;
  return backend.template run<Body>(plan.blocks, 1, {from, plan}, plan.shared_bytes);
}
template <class Backend, class Launch>
int run_mlp(Backend& backend, const Launch& from, const MlpPlan& plan) {
  const bool wide = row_tiles(plan.rows, times_of(from)) == 2;
  switch (from.precision) {
    case kMediumPrecision:
      return wide ? run_mlp<1, 2>(backend, from, plan) : run_mlp<1, 1>(backend, from, plan);
    case kHighPrecision:
      return wide ? run_mlp<2, 2>(backend, from, plan) : run_mlp<2, 1>(backend, from, plan);
    default:
      return wide ? run_mlp<3, 2>(backend, from, plan) : run_mlp<3, 1>(backend, from, plan);
  }
}

// Workspace, and launches, of the four ops; MlpUnrollBackward here of a smooth potential.
template <class Launch, class Backend>
int64_t mlp_workspace_bytes(const Backend& backend, const Launch& from) {
  WorkspaceParts workspace(nullptr);
  plan_mlp(workspace, from, backend.memory_limit());
  return workspace.bytes();
}
template <class Backend, class Launch>
int launch_mlp(Backend& backend, const Launch& from) {
  WorkspaceParts workspace(from.workspace);
  const MlpPlan plan = plan_mlp(workspace, from, backend.memory_limit());
  const int error = run_mlp(backend, from, plan);
  if (error != 0) return error;
  if constexpr (MlpBodyOf<Launch>::sums) {
    MlpReductions sums;
    sums.of(plan.block_sums, plan.blocks, plan.sums.size);
    add_sums(sums, plan, from);
    return sums.run(backend);
  }
  return 0;
}

template <bool kPulls, class Backend>
int run_cotangents(Backend& backend, const MlpCotangentsArgs& args) {
  using Body = MlpCotangents<kPulls>;
  return backend.template run<Body>(args.blocks, 1, args, Body::memory_bytes(args.launch.shape.dim));
}

// The same of a piecewise-linear one. field_bytes(backend, field) and launch_field(backend, field), found
// where the backend is, are those of MlpField.
template <class Backend>
int64_t linear_backward_bytes(const Backend& backend, const MlpUnrollBackward& args) {
  MlpLinearBackward from = {args, nullptr, nullptr};
  WorkspaceParts workspace(nullptr);
  const MlpField field = plan_gradients(workspace, from);
  if (from.needs_gradients()) workspace.take<char>(field_bytes(backend, field));
  plan_cotangents(workspace, from);
  plan_mlp(workspace, from, backend.memory_limit());
  return workspace.bytes();
}
template <class Backend>
int launch_linear_backward(Backend& backend, const MlpUnrollBackward& args) {
  MlpLinearBackward from = {args, nullptr, nullptr};
  WorkspaceParts workspace(args.workspace);
  MlpField field = plan_gradients(workspace, from);
  if (from.needs_gradients()) field.workspace = workspace.take<char>(field_bytes(backend, field));
  const MlpCotangentsArgs first = plan_cotangents(workspace, from);
  const MlpPlan plan = plan_mlp(workspace, from, backend.memory_limit());
  int error = 0;
  if (plan.rows > 0 && from.needs_gradients()) error = launch_field(backend, field);
  if (error == 0 && plan.rows > 0)
    error = from.pulls() ? run_cotangents<true>(backend, first) : run_cotangents<false>(backend, first);
  if (error == 0) error = run_mlp(backend, from, plan);
  if (error != 0) return error;
  MlpReductions sums;
  sums.of(first.block_sums, first.blocks, first.sums.size);
  sums.add_others(first.sums, from);
  sums.of(plan.block_sums, plan.blocks, plan.sums.size);
  add_sums(sums, plan, from);
  return sums.run(backend);
}

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
