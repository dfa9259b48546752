// The whole backward pass of the unroll: each tile goes back from t = T to 0. At every stored x_t the
// network's second-order products turn the kick's cotangent of F(x_t) into cotangents of x_t and of the
// weights.
//
// A piecewise-linear potential has no Hessian: x_t's cotangent passes kicks unchanged but for a Gaussian's
// pull, and with φ' kept as bits not even the forward sweep is repeated. Products through hidden layers that
// the forward unroll kept are read, not computed again.
#pragma once

#include <cstring>

#include "cpu/mlp/dynamics.h"
#include "cpu/mlp/gradient.h"
#include "cpu/mlp/reduce.h"
#include "cpu/mlp/second_order.h"

namespace ade {
namespace ADE_ISA {
namespace mlp {

template <class T>
struct UnrollBackward {
  // What one group of tiles sums up.
  struct Sums {
    WeightSums<T> weights;
    StepSums<T> steps;

    Sums(const MlpUnrollBackward& args, Arena& arena) : weights(args.shape, arena) {
      const int64_t drifts = args.dynamics.steps * args.shape.dim, kicks = drifts + args.shape.dim;
      steps.kick = arena.take<T>(kicks);
      steps.drift = arena.take<T>(drifts);
      steps.decay = arena.take<T>(kicks);
      steps.stretch = arena.take<T>(drifts);
      const auto take = [&](const void* of, int64_t size) { return arena.take<T>(of ? size : 0); };
      steps.scale = take(args.dynamics.scale, args.dynamics.steps + 1);
      steps.pull = take(args.dynamics.pull, kicks);
      steps.centre = take(args.dynamics.pull, kicks);
      steps.noise_v = take(args.dynamics.noise, drifts);
      steps.noise_x = take(args.dynamics.noise, drifts);
      steps.scratch = arena.take<T>(3 * args.shape.dim);
    }
  };
  struct Worker {
    Tile<T> tile;
    Tile<T> end;  // at x_T, where f's value has a cotangent
    T* force;     // [rows, D], where it is not the gradient; or null

    Worker(const MlpUnrollBackward& args, const Network<T>& network, const Dynamics<T>& dynamics,
           Arena& arena)
        : tile(network, TileUse{true, false}, capacity(args), arena),
          end(network, TileUse{true, true}, has_end_tile(args) ? capacity(args) : 0, arena),
          force(dynamics.bridged() ? arena.take<T>(static_cast<int64_t>(capacity(args)) * args.shape.dim)
                                   : nullptr) {}
    static int capacity(const MlpUnrollBackward& args) { return Tiles(args.dynamics.rows).capacity(); }
  };
  // Everything that lives in the workspace, in its order: weights, sums of each group, workers.
  struct Layout {
    Arena arena;
    Network<T> network;
    Dynamics<T> dynamics;
    int64_t sums_at, sums_bytes, workers_at, worker_bytes;

    explicit Layout(const MlpUnrollBackward& args)
        : arena(args.workspace),
          network(args.shape, arena),
          dynamics(args.dynamics, args.shape.dim, arena),
          sums_at(arena.used()) {
      Arena sums(nullptr), worker(nullptr);
      Sums(args, sums);
      Worker(args, network, dynamics, worker);
      sums_bytes = sums.used();
      worker_bytes = worker.used();
      workers_at = sums_at + groups(args).count * sums_bytes;
    }
  };

  static Groups groups(const MlpUnrollBackward& args) { return Groups(Tiles(args.dynamics.rows).count); }

  static int64_t workspace_bytes(MlpUnrollBackward args) {
    args.workspace = nullptr;
    const Layout layout(args);
    return layout.workers_at + min_of(args.workers, groups(args).count) * layout.worker_bytes;
  }

  static void launch(const MlpUnrollBackward& args, cpu::Parallel parallel) {
    Layout layout(args);
    const bool computes = !args.products || (has_end_tile(args) && !keeps_end(args));
    layout.network.pack(args.weights, {computes, !piecewise_linear(args.shape.activation)});
    layout.dynamics.prepare();
    const Tiles cut(args.dynamics.rows);
    const Groups group(cut.count);
    char* const memory = static_cast<char*>(args.workspace);
    Queue queue(group.count);
    run_workers(parallel, min_of(args.workers, group.count), [&](int64_t index) {
      Arena own(memory + layout.workers_at + index * layout.worker_bytes);
      Worker worker(args, layout.network, layout.dynamics, own);
      Tile<T>& tile = worker.tile;
      for (int64_t g; (g = queue.next()) >= 0;) {
        char* const block = memory + layout.sums_at + g * layout.sums_bytes;
        memset(block, 0, layout.sums_bytes);
        Arena arena(block);
        Sums sums(args, arena);
        tile.want = wanted(args);
        tile.begin_sums(sums.weights);
        if (has_end_tile(args)) {
          worker.end.want = wanted_at_end(args);
          worker.end.begin_sums(sums.weights);
        }
        for (int64_t i = group.begin(g); i < group.begin(g + 1); ++i) {
          go_back(args, layout.dynamics, worker, sums.steps, cut.begin(i),
                  static_cast<int>(cut.begin(i + 1) - cut.begin(i)));
        }
        tile.end_sums();
        if (has_end_tile(args)) worker.end.end_sums();
      }
    });
    Arena arena(memory + layout.sums_at);
    reduce(args, Sums(args, arena), {group.count, layout.sums_bytes}, parallel);
  }

  static Wanted wanted(const MlpUnrollBackward& args) {
    const bool smooth = !piecewise_linear(args.shape.activation);
    Wanted want{};
    want.gradient = true;
    want.weights = args.dweights.weight[0] != nullptr;
    want.tangent = !args.stopped && (smooth || want.weights);
    want.curvature = want.tangent && smooth;
    want.bits_kept = args.bits != nullptr;
    return want;
  }

  // The value's derivative by x is the gradient, which any tile knows; that by the weights takes a tile of
  // its own.
  static bool has_end_tile(const MlpUnrollBackward& args) {
    return args.dends.value && args.dweights.weight[0];
  }
  static bool keeps_end(const MlpUnrollBackward& args) {
    return args.products && (args.dends.hidden || !piecewise_linear(args.shape.activation));
  }
  static Wanted wanted_at_end(const MlpUnrollBackward& args) {
    Wanted want = wanted(args);
    want.bits_kept = args.bits && keeps_end(args);
    return want;
  }

  static void go_back(const MlpUnrollBackward& args, const Dynamics<T>& dynamics, Worker& worker,
                      const StepSums<T>& steps, int64_t first, int rows) {
    const int64_t dim = args.shape.dim, size = rows * dim, at = first * dim, all = args.dynamics.rows * dim;
    const int64_t bytes = size * sizeof(T), bit_stride = unit_count(args.shape) / 8;
    const T* const x = static_cast<const T*>(args.x) + at;
    const T* const v = static_cast<const T*>(args.v) + at;
    const T* const v0 = static_cast<const T*>(args.v0) + at;
    const T* const factor = args.weight_factor ? static_cast<const T*>(args.weight_factor) + first : nullptr;
    const T* const dv_all = args.dv_all ? static_cast<const T*>(args.dv_all) + at : nullptr;
    T* const dx = static_cast<T*>(args.dx0) + at;  // the cotangents of x and v are carried in their outputs
    T* const dv = static_cast<T*>(args.dv0) + at;
    memcpy(dx, static_cast<const T*>(args.dx_end) + at, bytes);
    memcpy(dv, static_cast<const T*>(args.dv_end) + at, bytes);
    for (int64_t t = args.dynamics.steps; t >= 0; --t) {
      if (t < args.dynamics.steps) {
        dynamics.drift_vjp(t, rows, x + t * all, v + t * all, dynamics.noise(t, first), dx, dv, steps);
      }
      for (int64_t i = 0; dv_all && i < size; ++i) dv[i] += dv_all[t * all + i];
      const bool last = t == args.dynamics.steps, at_end = last && has_end_tile(args);
      const bool known = !at_end || keeps_end(args);
      Tile<T>& tile = at_end ? worker.end : worker.tile;
      // The tile only reads the bits and products that are given.
      uint8_t* const bits = const_cast<uint8_t*>(args.bits);
      tile.begin(
          rows, bits && known ? bits + (t * args.dynamics.rows + first) * bit_stride : nullptr,
          Products<T>::at(known ? const_cast<void*>(args.products) : nullptr, args.shape, args.dynamics.rows,
                          t, first, true, at_end ? const_cast<void*>(args.dends.hidden) : nullptr));
      memcpy(tile.x, x + t * all, bytes);
      if (at_end) memcpy(tile.dvalue, static_cast<const T*>(args.dends.value) + first, rows * sizeof(T));
      first_order(tile, tile.want);
      T* const force = dynamics.bridged() ? worker.force : tile.gradient;
      const T* const v_before = t == 0 ? v0 : v + (t - 1) * all;
      const T* const noise = t == 0 ? nullptr : dynamics.noise(t - 1, first);
      if (noise) dynamics.refresh_momentum_vjp(t - 1, rows, noise, dv, steps);
      if (dynamics.bridged()) dynamics.force(t, rows, tile.x, tile.gradient, force);
      dynamics.kick_vjp(t, rows, force, v_before, dv, tile.dgradient, steps);
      if (dynamics.bridged() && !args.stopped)
        dynamics.force_vjp(t, rows, tile.x, tile.gradient, tile.dgradient, dx, steps);
      if (last && args.dends.value) {
        const T* const dvalue = static_cast<const T*>(args.dends.value) + first;
        const bool by_curvature = at_end && tile.want.curvature;  // then tile.dx has the gradient's part
        for (int64_t i = 0; !by_curvature && i < size; ++i) dx[i] += dvalue[i / dim] * tile.gradient[i];
        dynamics.gaussian(t).add_value_vjp(rows, tile.x, dvalue, dx);
      }
      for (int64_t i = 0; last && args.dends.gradient && i < size; ++i)
        tile.dgradient[i] += static_cast<const T*>(args.dends.gradient)[at + i];
      if (factor) scale(tile, rows, dim, factor, at_end);
      if (tile.want.tangent) second_order(tile, tile.want);
      for (int64_t i = 0; tile.want.curvature && i < size; ++i)
        dx[i] += factor ? tile.dx[i] / factor[i / dim] : tile.dx[i];
      if (args.adjoint) {
        T* const norm = static_cast<T*>(args.adjoint) + 2 * t * args.dynamics.rows + first;
        norms(rows, dim, dx, norm);
        norms(rows, dim, dv, norm + args.dynamics.rows);
      }
    }
  }

  // Second-order products are linear in these, row by row.
  static void scale(Tile<T>& tile, int rows, int64_t dim, const T* factor, bool at_end) {
    for (int r = 0; r < rows; ++r) {
      for (int64_t d = 0; d < dim; ++d) tile.dgradient[r * dim + d] *= factor[r];
      if (at_end) tile.dvalue[r] *= factor[r];
    }
  }

  // Of each row; the squares of what explodes would not fit T.
  static void norms(int rows, int64_t dim, const T* cotangent, T* norm) {
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0;
      for (int64_t i = r * dim; i < (r + 1) * dim; ++i) {
        const double term = cotangent[i];
        sum += term * term;
      }
      norm[r] = static_cast<T>(__builtin_sqrt(sum));
    }
  }

  static void reduce(const MlpUnrollBackward& args, const Sums& first, const OverGroups<T>& groups,
                     cpu::Parallel parallel) {
    const int64_t drifts = args.dynamics.steps * args.shape.dim, kicks = drifts + args.shape.dim;
    if (args.dweights.weight[0])
      reduce_weights(args.shape, args.weights, first.weights, groups, args.dweights, parallel);
    groups.sum(first.steps.kick, kicks, static_cast<T*>(args.dkick));
    groups.sum(first.steps.drift, drifts, static_cast<T*>(args.ddrift));
    if (args.dlog_decay) groups.sum(first.steps.decay, kicks, static_cast<T*>(args.dlog_decay));
    if (args.dlog_stretch) groups.sum(first.steps.stretch, drifts, static_cast<T*>(args.dlog_stretch));
    if (args.dscale) groups.sum(first.steps.scale, args.dynamics.steps + 1, static_cast<T*>(args.dscale));
    if (args.dpull) groups.sum(first.steps.pull, kicks, static_cast<T*>(args.dpull));
    if (args.dcentre) groups.sum(first.steps.centre, kicks, static_cast<T*>(args.dcentre));
    if (args.dnoise_v) groups.sum(first.steps.noise_v, drifts, static_cast<T*>(args.dnoise_v));
    if (args.dnoise_x) groups.sum(first.steps.noise_x, drifts, static_cast<T*>(args.dnoise_x));
  }
};

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
