// Markov chains of an MLP potential: each tile of samples goes through all transitions while its activations
// and the weights stay in cache. Every point is evaluated once: what a proposal's evaluation has found is
// kept where it is accepted, and what was kept stays where it is not. What contrastive divergence moves the
// weights by is summed on the way, from the evaluation that the first transition begins with, and one at the
// end.
#pragma once

#include <cstring>

#include "cpu/mlp/dynamics.h"
#include "cpu/mlp/gradient.h"
#include "cpu/mlp/reduce.h"
#include "cpu/mlp/second_order.h"
#include "cpu/mlp/tasks.h"
#include "cpu/philox_run.h"

namespace ade {
namespace ADE_ISA {
namespace mlp {

template <class T>
struct Chain {
  // Sums follow the points for so many evaluations: their rounding errors add up.
  static constexpr int kFollowed = 16;

  // Everything that lives in the workspace, in its order.
  struct Layout {
    Arena arena;
    Network<T> network;
    Dynamics<T> dynamics;
    int64_t* moved;  // [K], samples that moved
    int64_t sums_at, sums_bytes, workers_at, worker_bytes;

    explicit Layout(const MlpChain& args)
        : arena(args.workspace),
          network(args.shape, arena),
          dynamics(args.dynamics, args.shape.dim, arena),
          moved(arena.take<int64_t>(args.transitions)),
          sums_at(arena.used()) {
      Arena sums(nullptr), worker(nullptr);
      WeightSums<T>(args.shape, sums);
      Worker(args, network, worker);
      sums_bytes = sums.used();
      workers_at = sums_at + (contrasts(args) ? Cut(args).groups * sums_bytes : 0);
      worker_bytes = worker.used();
    }
  };
  // Tiles, and what one worker does at a time: a group that shares its sums, or a tile.
  struct Cut {
    Tiles tiles;
    Groups group;
    bool grouped;
    int64_t groups;

    explicit Cut(const MlpChain& args)
        : tiles(contrasts(args) ? Tiles(args.dynamics.rows) : Tiles(args.dynamics.rows, args.workers)),
          group(tiles.count),
          grouped(contrasts(args)),
          groups(grouped ? group.count : tiles.count) {}
    int64_t begin(int64_t g) const { return grouped ? group.begin(g) : g; }
  };
  struct Worker {
    Tile<T> tile;
    T* v;        // [rows, D]
    T* x;        // [rows, D], where the chains are; with the force and f there
    T* force;    // [rows, D]
    T* value;    // [rows]
    T* energy;   // [rows], f - ½ ‖v‖² at the beginning of a transition
    T* log_u;    // [rows]
    T* factor;   // [rows], of f in the contrast; or null
    int* stays;  // [rows], those that the last transition has not moved, and
    int stay_count;
    bool finite;  // whether what they were proposed was of finite numbers
    philox::Run<T> run;
    int evaluations;

    Worker(const MlpChain& args, const Network<T>& network, Arena& arena)
        : tile(network, TileUse{false, contrasts(args), true}, Cut(args).tiles.capacity(), arena),
          factor(tile.dvalue) {
      const int64_t rows = Cut(args).tiles.capacity(), points = rows * args.shape.dim;
      v = arena.take<T>(points);
      x = arena.take<T>(points);
      force = arena.take<T>(points);
      value = arena.take<T>(rows);
      energy = arena.take<T>(rows);
      log_u = arena.take<T>(rows);
      stays = arena.take<int>(rows);
    }
  };

  static bool contrasts(const MlpChain& args) { return args.value != nullptr; }

  static int64_t workspace_bytes(MlpChain args) {
    args.workspace = nullptr;
    const Layout layout(args);
    return layout.workers_at + min_of(args.workers, Cut(args).groups) * layout.worker_bytes;
  }

  static void launch(const MlpChain& args, cpu::Parallel parallel) {
    Layout layout(args);
    memset(layout.moved, 0, args.transitions * sizeof(int64_t));
    const Cut cut(args);
    char* const memory = static_cast<char*>(args.workspace);
    if (args.dynamics.rows > 0) {
      layout.network.pack(args.weights, {true, false});
      layout.dynamics.prepare();
    }
    Queue queue(cut.groups);
    run_workers(parallel, min_of(args.workers, cut.groups), [&](int64_t index) {
      Arena arena(memory + layout.workers_at + index * layout.worker_bytes);
      Worker worker(args, layout.network, arena);
      const auto each_tile = [&](int64_t g) {
        for (int64_t tile = cut.begin(g); tile < cut.begin(g + 1); ++tile) {
          const int64_t first = cut.tiles.begin(tile);
          Rows{args, layout, worker, first, static_cast<int>(cut.tiles.begin(tile + 1) - first)}.run();
        }
      };
      for (int64_t g; (g = queue.next()) >= 0;) {
        if (!contrasts(args)) {
          each_tile(g);
          continue;
        }
        char* const block = memory + layout.sums_at + g * layout.sums_bytes;
        memset(block, 0, layout.sums_bytes);
        Arena own(block);
        WeightSums<T> sums(args.shape, own);
        worker.tile.want.tangent = true;
        worker.tile.begin_sums(sums);
        each_tile(g);
        worker.tile.want.tangent = true;
        worker.tile.end_sums();
      }
    });
    T* const acceptance = static_cast<T*>(args.acceptance);
    for (int64_t k = 0; args.test && k < args.transitions; ++k) {
      acceptance[k] = static_cast<T>(layout.moved[k]) / static_cast<T>(args.dynamics.rows);
    }
    if (!contrasts(args)) return;
    Arena arena(memory + layout.sums_at);
    reduce_weights<T>(args.shape, args.weights, WeightSums<T>(args.shape, arena),
                      {cut.groups, layout.sums_bytes}, args.dweights, parallel);
  }

 private:
  // The chains of one tile's rows, from `first` on.
  struct Rows {
    const MlpChain& args;
    const Layout& layout;
    Worker& worker;
    const int64_t first;
    const int rows;

    int64_t dim() const { return args.shape.dim; }
    int64_t bytes() const { return rows * dim() * static_cast<int64_t>(sizeof(T)); }

    void run() {
      const int64_t at = first * dim();
      Tile<T>& tile = worker.tile;
      tile.want = Wanted{};
      tile.want.gradient = true;
      memcpy(tile.x, static_cast<const T*>(args.x0) + at, bytes());
      worker.evaluations = 0;
      evaluate(rows, args.test || contrasts(args));
      if (contrasts(args)) {
        keep_values(0, tile.value);
        for (int r = 0; r < rows; ++r) worker.factor[r] = -share();
        add_gradients();
      }
      if (args.test) {
        for (int r = 0; r < rows; ++r) keep(r);
      }
      for (int64_t k = 0; k < args.transitions; ++k) {
        draw_momentum(k);
        args.test ? propose(k) : move(k + 1 == args.transitions);
      }
      memcpy(static_cast<T*>(args.x) + at, args.test ? worker.x : tile.x, bytes());
      if (contrasts(args)) contrast_ends();
    }

    // Where the chains end. With a test most rows have just moved to the tile's points: only those that have
    // not are evaluated again.
    void contrast_ends() {
      Tile<T>& tile = worker.tile;
      const bool again = !args.test || !worker.finite;
      if (again) {
        if (args.test) memcpy(tile.x, worker.x, bytes());
        evaluate(rows, true);
      }
      keep_values(1, args.test ? worker.value : tile.value);
      for (int r = 0; r < rows; ++r) worker.factor[r] = share();
      for (int i = 0; !again && i < worker.stay_count; ++i) worker.factor[worker.stays[i]] = 0;
      add_gradients();
      if (again || worker.stay_count == 0) return;
      for (int i = 0; i < worker.stay_count; ++i) {
        const int64_t size = dim() * static_cast<int64_t>(sizeof(T));
        memcpy(tile.x + i * dim(), worker.x + worker.stays[i] * dim(), size);
        worker.factor[i] = share();
      }
      tile.forget();  // sums lie otherwise for another number of rows
      evaluate(worker.stay_count, true);
      add_gradients();
    }

    T share() const { return T(1) / static_cast<T>(args.dynamics.rows); }

    void keep_values(int end, const T* value) {
      memcpy(static_cast<T*>(args.value) + end * args.dynamics.rows + first, value, rows * sizeof(T));
    }

    // Of Σ factor f at the points of the last evaluation, without another one.
    void add_gradients() {
      Tile<T>& tile = worker.tile;
      tile.want.tangent = true;
      for (int l = tile.layers(); l >= 1; --l) tile.weight_gradient(l);
      tile.want.tangent = false;
    }

    // The force at the first rows of tile.x in tile.gradient, and where wanted f.
    void evaluate(int rows, bool want_value) {
      Tile<T>& tile = worker.tile;
      tile.want.value = want_value;
      tile.dvalue = want_value ? worker.factor : nullptr;  // else nobody reads h_L
      if (worker.evaluations++ % kFollowed == 0) tile.forget();
      tile.begin(rows, nullptr, {nullptr, 0, false});
      first_order(tile, tile.want);
      if (want_value) layout.dynamics.gaussian(0).add_value(rows, tile.x, tile.value);
      if (layout.dynamics.bridged()) layout.dynamics.force(0, rows, tile.x, tile.gradient, tile.gradient);
    }

    // One transition without a test; the force at the last one's end is nobody's.
    void move(bool last) {
      const int64_t steps = args.dynamics.steps;
      for (int64_t t = 0; t < steps; ++t) {
        layout.dynamics.kick(t, rows, worker.tile.gradient, worker.v);
        layout.dynamics.drift(t, rows, worker.v, nullptr, worker.tile.x);
        if (!last || t + 1 < steps) evaluate(rows, false);
      }
    }

    // One transition with a test of each row.
    void propose(int64_t k) {
      Tile<T>& tile = worker.tile;
      const int64_t steps = args.dynamics.steps;
      for (int r = 0; r < rows; ++r) worker.energy[r] = worker.value[r] - kinetic(r);
      memcpy(tile.x, worker.x, bytes());
      for (int64_t t = 0; t < steps; ++t) {
        layout.dynamics.kick(t, rows, t == 0 ? worker.force : tile.gradient, worker.v);
        layout.dynamics.drift(t, rows, worker.v, nullptr, tile.x);
        evaluate(rows, t + 1 == steps);
      }
      layout.dynamics.kick(steps, rows, tile.gradient, worker.v);
      draw_log_uniforms(k);
      worker.stay_count = 0;
      worker.finite = true;
      for (int r = 0; r < rows; ++r) {
        const T gain = tile.value[r] - kinetic(r) - worker.energy[r];
        if (worker.log_u[r] < gain) {
          keep(r);
        } else {  // also where the gain is NaN
          worker.stays[worker.stay_count++] = r;
          worker.finite = worker.finite && __builtin_isfinite(gain);
        }
      }
      __atomic_fetch_add(&layout.moved[k], int64_t{rows} - worker.stay_count, __ATOMIC_RELAXED);
    }

    // Row r moves to the tile's point.
    void keep(int r) {
      const int64_t at = r * dim(), size = dim() * static_cast<int64_t>(sizeof(T));
      memcpy(worker.x + at, worker.tile.x + at, size);
      memcpy(worker.force + at, worker.tile.gradient + at, size);
      worker.value[r] = worker.tile.value[r];
    }

    T kinetic(int r) const {
      T sum = 0;
      for (int64_t d = 0; d < dim(); ++d) sum += worker.v[r * dim() + d] * worker.v[r * dim() + d];
      return sum / 2;
    }

    uint64_t key() const { return *static_cast<const uint64_t*>(args.seed); }

    void draw_momentum(int64_t k) {
      if (args.normals) {
        const int64_t at = (k * args.dynamics.rows + first) * dim();
        memcpy(worker.v, static_cast<const T*>(args.normals) + at, bytes());
      } else {
        philox::draw_rows(worker.run, philox::Blocks::of<T>(dim(), k, key()), first, rows, worker.v);
      }
      const T* const std = static_cast<const T*>(args.noise_std);
      for (int64_t i = 0; std && i < rows * dim(); ++i) worker.v[i] *= std[i % dim()];
    }

    void draw_log_uniforms(int64_t k) {
      if (args.uniforms) {
        const T* const u = static_cast<const T*>(args.uniforms) + k * args.dynamics.rows + first;
        for (int r = 0; r < rows; ++r) worker.log_u[r] = std::log(u[r]);
        return;
      }
      for (int from = 0; from < rows; from += philox::kRunBlocks) {
        const int count = static_cast<int>(min_of(philox::kRunBlocks, rows - from));
        worker.run.draw_log_uniforms(key(), k, first + from, count);
        for (int i = 0; i < count; ++i) worker.log_u[from + i] = worker.run.log_uniform(i);
      }
    }
  };
};

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
