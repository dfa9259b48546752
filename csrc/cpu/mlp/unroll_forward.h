// The whole forward unroll: each tile of samples goes through all T + 1 kicks and T drifts while its
// activations and the weights stay in cache.
#pragma once

#include <cstring>

#include "cpu/mlp/dynamics.h"
#include "cpu/mlp/gradient.h"
#include "cpu/mlp/tasks.h"

namespace ade {
namespace ADE_ISA {
namespace mlp {

template <class T>
struct UnrollForward {
  // Everything that lives in the workspace, in its order.
  struct Layout {
    Arena arena;
    Network<T> network;
    Dynamics<T> dynamics;
    int64_t shared_bytes, worker_bytes;

    explicit Layout(const MlpUnroll& args)
        : arena(args.workspace), network(args.shape, arena), dynamics(args.dynamics, args.shape.dim, arena) {
      Arena worker(nullptr);
      Worker(args, network, worker);
      shared_bytes = arena.used();
      worker_bytes = worker.used();
    }
  };
  struct Worker {
    Tile<T> tile;
    T* v;  // [rows, D]

    Worker(const MlpUnroll& args, const Network<T>& network, Arena& arena)
        : tile(network, TileUse{false, false}, tiles(args).capacity(), arena),
          v(arena.take<T>(static_cast<int64_t>(tiles(args).capacity()) * args.shape.dim)) {}
  };

  static Tiles tiles(const MlpUnroll& args) { return Tiles(args.dynamics.rows, args.workers); }

  static int64_t workspace_bytes(MlpUnroll args) {
    args.workspace = nullptr;
    const Layout layout(args);
    return layout.shared_bytes + min_of(args.workers, tiles(args).count) * layout.worker_bytes;
  }

  static void launch(const MlpUnroll& args, cpu::Parallel parallel) {
    if (args.dynamics.rows == 0) return;
    Layout layout(args);
    layout.network.pack(args.weights, {true, false});
    layout.dynamics.prepare();
    const Tiles cut = tiles(args);
    Queue queue(cut.count);
    run_workers(parallel, min_of(args.workers, cut.count), [&](int64_t index) {
      Arena arena(static_cast<char*>(args.workspace) + layout.shared_bytes + index * layout.worker_bytes);
      Worker worker(args, layout.network, arena);
      for (int64_t tile; (tile = queue.next()) >= 0;) {
        unroll(args, layout.dynamics, worker, cut.begin(tile),
               static_cast<int>(cut.begin(tile + 1) - cut.begin(tile)));
      }
    });
  }

  static void unroll(const MlpUnroll& args, const Dynamics<T>& dynamics, Worker& worker, int64_t first,
                     int rows) {
    const int64_t dim = args.shape.dim, at = first * dim, all = args.dynamics.rows * dim,
                  bytes = rows * dim * sizeof(T);
    const int64_t bit_stride = unit_count(args.shape) / 8;
    Tile<T>& tile = worker.tile;
    tile.want = Wanted{};
    tile.want.gradient = true;
    memcpy(tile.x, static_cast<const T*>(args.x0) + at, bytes);
    memcpy(worker.v, static_cast<const T*>(args.v0) + at, bytes);
    const T* noise = nullptr;  // ξ_{t-1}
    for (int64_t t = 0; t <= args.dynamics.steps; ++t) {
      const bool last = t == args.dynamics.steps;
      tile.want.value = args.value || (args.ends.value && (t == 0 || last));
      tile.begin(rows, args.bits ? args.bits + (t * args.dynamics.rows + first) * bit_stride : nullptr,
                 Products<T>::at(args.products, args.shape, args.dynamics.rows, t, first, false,
                                 last ? args.ends.hidden : nullptr));
      first_order(tile, tile.want);
      if (args.value) {
        memcpy(static_cast<T*>(args.value) + t * args.dynamics.rows + first, tile.value, rows * sizeof(T));
        memcpy(static_cast<T*>(args.gradient) + t * all + at, tile.gradient, bytes);
      }
      if (dynamics.bridged()) dynamics.force(t, rows, tile.x, tile.gradient, tile.gradient);
      if (args.ends.value && (t == 0 || last)) {
        dynamics.gaussian(t).add_value(rows, tile.x, tile.value);
        void* const to = last ? args.ends.value : args.ends.start_value;
        memcpy(static_cast<T*>(to) + first, tile.value, rows * sizeof(T));
      }
      if (args.ends.value && last) memcpy(static_cast<T*>(args.ends.gradient) + at, tile.gradient, bytes);
      dynamics.kick(t, rows, tile.gradient, worker.v);
      if (noise) dynamics.refresh_momentum(t - 1, rows, noise, worker.v);
      if (args.x) memcpy(static_cast<T*>(args.x) + t * all + at, tile.x, bytes);
      if (args.v) memcpy(static_cast<T*>(args.v) + t * all + at, worker.v, bytes);
      if (last) break;
      noise = dynamics.noise(t, first);
      dynamics.drift(t, rows, worker.v, noise, tile.x);
    }
    memcpy(static_cast<T*>(args.x_end) + at, tile.x, bytes);
    memcpy(static_cast<T*>(args.v_end) + at, worker.v, bytes);
  }
};

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
