// The field on its own: value and gradient of the potential, and the vector-Jacobian product of both.
#pragma once

#include <cstring>

#include "cpu/mlp/gaussian.h"
#include "cpu/mlp/gradient.h"
#include "cpu/mlp/reduce.h"
#include "cpu/mlp/second_order.h"

namespace ade {
namespace ADE_ISA {
namespace mlp {

template <class T>
struct Field {
  static Tiles tiles(const MlpField& args) { return Tiles(args.rows, args.workers); }

  static int64_t tile_bytes(const MlpField& args, const Network<T>& network) {
    Arena measure(nullptr);
    Tile<T>(network, TileUse{false, false}, tiles(args).capacity(), measure);
    return measure.used();
  }
  static int64_t workspace_bytes(const MlpField& args) {
    Arena measure(nullptr);
    const Network<T> network(args.shape, measure);
    return measure.used() + min_of(args.workers, tiles(args).count) * tile_bytes(args, network);
  }

  static void launch(const MlpField& args, cpu::Parallel parallel) {
    if (args.rows == 0) return;
    Arena shared(args.workspace);
    Network<T> network(args.shape, shared);
    network.pack(args.weights, {true, false});
    const Tiles cut = tiles(args);
    Queue queue(cut.count);
    const int64_t each = tile_bytes(args, network), dim = args.shape.dim;
    const int64_t bit_stride = unit_count(args.shape) / 8;
    run_workers(parallel, min_of(args.workers, cut.count), [&](int64_t index) {
      Arena own(static_cast<char*>(args.workspace) + shared.used() + index * each);
      Tile<T> tile(network, TileUse{false, false}, cut.capacity(), own);
      tile.want = Wanted{};
      tile.want.value = args.value != nullptr;
      tile.want.gradient = args.grad != nullptr;
      for (int64_t task; (task = queue.next()) >= 0;) {
        const int64_t first = cut.begin(task), rows = cut.begin(task + 1) - first;
        tile.begin(static_cast<int>(rows), args.bits ? args.bits + first * bit_stride : nullptr,
                   Products<T>::of_field(args.products, args.shape, args.rows, first, false));
        memcpy(tile.x, static_cast<const T*>(args.x) + first * dim, rows * dim * sizeof(T));
        first_order(tile, tile.want);
        const Gaussian<T> gaussian{args.pull, args.centre, dim};
        if (args.value) {
          gaussian.add_value(rows, tile.x, tile.value);
          const T shift = static_cast<T>(args.value_shift);
          for (int64_t r = 0; r < rows; ++r) static_cast<T*>(args.value)[first + r] = tile.value[r] + shift;
        }
        if (args.grad) {
          gaussian.add_force(rows, tile.x, tile.gradient);
          memcpy(static_cast<T*>(args.grad) + first * dim, tile.gradient, rows * dim * sizeof(T));
        }
      }
    });
  }
};

template <class T>
struct FieldBackward {
  static TileUse use(const MlpFieldBackward& args) { return {args.dgrad != nullptr, args.dvalue != nullptr}; }

  // Everything that lives in the workspace, in its order: weights, sums of each group, tiles of the workers.
  struct Layout {
    Arena arena;
    Network<T> network;
    int64_t sums_at, sums_bytes, tiles_at, tile_bytes;

    explicit Layout(const MlpFieldBackward& args)
        : arena(args.workspace), network(args.shape, arena), sums_at(arena.used()) {
      Arena sums(nullptr), tile(nullptr);
      WeightSums<T>(args.shape, sums);
      Tile<T>(network, use(args), Tiles(args.rows).capacity(), tile);
      sums_bytes = sums.used();
      tile_bytes = tile.used();
      tiles_at = sums_at + Groups(Tiles(args.rows).count).count * sums_bytes;
    }
  };

  static int64_t workspace_bytes(MlpFieldBackward args) {
    args.workspace = nullptr;
    const Layout layout(args);
    return layout.tiles_at + min_of(args.workers, Groups(Tiles(args.rows).count).count) * layout.tile_bytes;
  }

  static void launch(const MlpFieldBackward& args, cpu::Parallel parallel) {
    Layout layout(args);
    const bool homogeneous = use(args).homogeneous(args.shape), curvature = use(args).curvature(args.shape);
    layout.network.pack(args.weights, {args.products == nullptr, curvature});
    const Tiles cut(args.rows);
    const Groups group(cut.count);
    char* const memory = static_cast<char*>(args.workspace);
    const int64_t dim = args.shape.dim, bit_stride = unit_count(args.shape) / 8;
    Queue queue(group.count);
    run_workers(parallel, min_of(args.workers, group.count), [&](int64_t index) {
      Arena own(memory + layout.tiles_at + index * layout.tile_bytes);
      Tile<T> tile(layout.network, use(args), cut.capacity(), own);
      tile.want = Wanted{};
      tile.want.bits_kept = args.bits != nullptr;
      tile.want.value = args.value != nullptr;
      const bool weights = args.dweights.weight[0] != nullptr;
      tile.want.curvature = curvature;
      tile.want.gradient = homogeneous;  // dx = df F
      tile.want.tangent = curvature || (weights && (args.dgrad || homogeneous));
      tile.want.weights = weights && tile.want.tangent;  // else their gradients are 0
      for (int64_t g; (g = queue.next()) >= 0;) {
        char* const block = memory + layout.sums_at + g * layout.sums_bytes;
        memset(block, 0, layout.sums_bytes);
        Arena arena(block);
        WeightSums<T> sums(args.shape, arena);
        tile.begin_sums(sums);
        for (int64_t t = group.begin(g); t < group.begin(g + 1); ++t) {
          const int64_t first = cut.begin(t), rows = cut.begin(t + 1) - first, bytes = rows * dim * sizeof(T);
          // The tile only reads the bits and products that are given.
          tile.begin(
              static_cast<int>(rows),
              args.bits ? const_cast<uint8_t*>(args.bits) + first * bit_stride : nullptr,
              Products<T>::of_field(const_cast<void*>(args.products), args.shape, args.rows, first, true));
          memcpy(tile.x, static_cast<const T*>(args.x) + first * dim, bytes);
          if (args.dgrad) memcpy(tile.dgradient, static_cast<const T*>(args.dgrad) + first * dim, bytes);
          if (args.dvalue) memcpy(tile.dvalue, static_cast<const T*>(args.dvalue) + first, rows * sizeof(T));
          first_order(tile, tile.want);
          const Gaussian<T> gaussian{args.pull, args.centre, dim};
          if (args.value) {
            gaussian.add_value(rows, tile.x, tile.value);
            memcpy(static_cast<T*>(args.value) + first, tile.value, rows * sizeof(T));
          }
          second_order(tile, tile.want);
          T* const dx = static_cast<T*>(args.dx) + first * dim;
          if (tile.want.curvature) {
            memcpy(dx, tile.dx, bytes);
          } else {
            for (int64_t i = 0; i < rows * dim; ++i)
              dx[i] = args.dvalue ? tile.dvalue[i / dim] * tile.gradient[i] : T(0);
          }
          if (args.dvalue) gaussian.add_value_vjp(rows, tile.x, tile.dvalue, dx);
          if (args.dgrad)
            gaussian.add_force_vjp(rows, tile.x, static_cast<const T*>(args.dgrad) + first * dim, dx);
        }
        tile.end_sums();
      }
    });
    if (!args.dweights.weight[0]) return;
    Arena arena(memory + layout.sums_at);
    reduce_weights<T>(args.shape, args.weights, WeightSums<T>(args.shape, arena),
                      {group.count, layout.sums_bytes}, args.dweights, parallel);
  }
};

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
