// From the arguments of launch/mlp.h to kernels: pack the weights, run the blocks, add their sums.
#pragma once

#include "cuda/mlp/field.h"
#include "cuda/mlp/pack.h"
#include "cuda/mlp/reduce.h"
#include "cuda/mlp/unroll_backward.h"

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

// Also places everything in `workspace` and returns the bytes of it that are used.
template <class Launch>
int64_t plan_mlp(MlpPlan& plan, const Launch& from, int64_t memory_limit) {
  constexpr bool kSums = MlpBodyOf<Launch>::sums;
  const auto aligned = [](int64_t bytes) { return (bytes + 255) / 256 * 256; };
  plan = plan_network(from);
  const MlpUse use = use_of(from);
  const int wide = row_tiles(plan.rows);
  plan_buffers(plan, use, from.precision, wide, BlockMemory(memory_limit));
  plan.own_bytes = aligned(plan.own_bytes);
  const int64_t block_rows = int64_t{wide} * kTile, limit = (kSums ? kBackwardTiles : kForwardTiles) / wide;
  plan.tiles = (plan.rows + block_rows - 1) / block_rows;
  plan.blocks = plan.tiles < limit ? plan.tiles : limit;

  char* const base = static_cast<char*>(from.workspace);
  int64_t bytes = 0;
  const auto place = [&](int64_t size) {
    const int64_t at = bytes;
    bytes += aligned(size);
    return base == nullptr ? nullptr : base + at;
  };
  plan.packed =
      reinterpret_cast<Quad*>(place(from.precision * plan.plane * static_cast<int64_t>(sizeof(Quad))));
  plan.own = place(plan.blocks * plan.own_bytes);
  if constexpr (kSums) {
    plan_sums(plan, use, steps_of(from));
    plan.block_sums = reinterpret_cast<float*>(place(plan.blocks * plan.sums.size * 4));
  }
  return bytes;
}

inline void add_sum(MlpReduceArgs& args, void* to, int64_t first, int64_t rows, int64_t columns,
                    int across = 0) {
  if (to == nullptr) return;
  args.sums[args.count++] = {static_cast<float*>(to), first, static_cast<int32_t>(rows),
                             static_cast<int32_t>(columns), across};
}
inline void add_weight_sums(MlpReduceArgs& args, const MlpPlan& plan, const MlpWeightGradients& to) {
  const int layers = plan.shape.layers;
  for (int l = 1; l <= layers; ++l) {
    add_sum(args, to.weight[l - 1], plan.sums.weight[l], plan.width(l), plan.width(l - 1),
            plan.columns(l - 1));
    add_sum(args, to.bias[l - 1], plan.sums.bias[l], 1, plan.width(l));
  }
  add_sum(args, to.weight[layers], plan.sums.out, 1, plan.width(layers));
  add_sum(args, to.bias[layers], plan.sums.out_bias, 1, 1);
}
inline void add_sums(MlpReduceArgs& args, const MlpPlan& plan, const MlpFieldBackward& from) {
  add_weight_sums(args, plan, from.dweights);
}
inline void add_sums(MlpReduceArgs& args, const MlpPlan& plan, const MlpUnrollBackward& from) {
  const int64_t steps = from.dynamics.steps, dim = plan.shape.dim;
  add_weight_sums(args, plan, from.dweights);
  add_sum(args, from.dkick, plan.sums.kick, steps + 1, dim);
  add_sum(args, from.ddrift, plan.sums.drift, steps, dim);
  add_sum(args, from.dlog_decay, plan.sums.decay, steps + 1, dim);
  add_sum(args, from.dlog_stretch, plan.sums.stretch, steps, dim);
}

template <class Launch, class Backend>
int64_t mlp_workspace_bytes(const Backend& backend, Launch from) {
  MlpPlan plan;
  from.workspace = nullptr;
  return plan_mlp(plan, from, backend.memory_limit());
}

template <int S, int R, class Backend, class Launch>
int run_mlp(Backend& backend, const Launch& from, const MlpPlan& plan) {
  using Body = typename MlpBodyOf<Launch>::template Body<S, R>;
  int error = 0;
  if (plan.rows > 0) {
    error = backend.template run<MlpPack<S>>(pack_blocks(plan), plan.shape.layers, {plan, from.weights});
    if (error != 0) return error;
    error = backend.template run<Body>(plan.blocks, 1, {from, plan}, plan.shared_bytes);
    if (error != 0) return error;
  }
  if constexpr (MlpBodyOf<Launch>::sums) {
    MlpReduceArgs sums = {plan.block_sums, plan.blocks, plan.sums.size, {}, 0};
    add_sums(sums, plan, from);
    int64_t largest = 0;
    for (int i = 0; i < sums.count; ++i) {
      const int64_t size = int64_t{1} * sums.sums[i].rows * sums.sums[i].columns;
      largest = size > largest ? size : largest;
    }
    if (sums.count > 0)
      error = backend.template run<MlpReduce>((largest + kThreads - 1) / kThreads, sums.count, sums);
  }
  return error;
}

template <class Backend, class Launch>
int launch_mlp(Backend& backend, const Launch& from) {
  MlpPlan plan;
  plan_mlp(plan, from, backend.memory_limit());
  const bool wide = row_tiles(plan.rows) == 2;
  switch (from.precision) {
    case kMediumPrecision:
      return wide ? run_mlp<1, 2>(backend, from, plan) : run_mlp<1, 1>(backend, from, plan);
    case kHighPrecision:
      return wide ? run_mlp<2, 2>(backend, from, plan) : run_mlp<2, 1>(backend, from, plan);
    default:
      return wide ? run_mlp<3, 2>(backend, from, plan) : run_mlp<3, 1>(backend, from, plan);
  }
}

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
