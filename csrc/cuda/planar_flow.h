// The kernels of the planar flow (flows/planar_flow.h), a thread for each sample.
//
// PlanarFlowConstrain     the layers' numbers, a thread for each layer.
// PlanarFlowBody          all layers; the states stay in shared memory.
// PlanarFlowBackwardBody  a first sweep stores the states, a second one takes the cotangents back. Each warp
//                         adds its samples' parts of the cotangents of the layers' numbers.
// PlanarFlowReduce        adds the warps, in order, and applies the constraint's vjp, a block for each layer.
//
// No atomics, and no barrier but the last kernel's: whatever a thread reads, its own warp has written.
#pragma once

#include "cuda/block.h"
#include "cuda/workspace.h"
#include "flows/planar_flow.h"
#include "launch/planar_flow.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

// --- arguments ---

// The j-th coordinate of a state, `stride` numbers from the one before.
template <class T>
struct PlanarFlowState {
  T* first;
  int64_t stride;
  ADE_HD T& operator[](int j) const { return first[j * stride]; }
};

template <class T>
struct PlanarFlowArgs {
  int64_t rows, layers;
  int32_t dim;
  const T* u;  // [L, D]
  const T* w;  // [L, D]
  const T* b;  // [L]
  T* numbers;  // workspace [L, 2D + 2] of planar_flow::Layer

  ADE_HD int size() const { return planar_flow::numbers_of(dim); }
  ADE_HD planar_flow::Layer<T> layer(int64_t l) const { return {numbers + l * size(), dim}; }
  // A thread's own state in shared memory.
  ADE_HD PlanarFlowState<T> own_state(char* memory, int t) const {
    return {reinterpret_cast<T*>(memory) + t, kThreads};
  }
  int64_t memory_bytes() const { return int64_t{kThreads} * dim * static_cast<int64_t>(sizeof(T)); }
};

template <class T>
struct PlanarFlowForwardArgs : PlanarFlowArgs<T> {
  const T* z;  // [B, D]
  T* x;        // [B, D]
  T* log_det;  // [B]
  T* heights;  // [L, B]
};

template <class T>
struct PlanarFlowBackwardArgs : PlanarFlowArgs<T> {
  const T* dx;        // [B, D]
  const T* dlog_det;  // [B]
  const T* z;         // [B, D]
  const T* heights;   // [L, B]
  T* dz;              // [B, D]
  T* du;              // [L, D]
  T* dw;              // [L, D]
  T* db;              // [L]
  T* states;          // workspace [L, D, B], each before its map
  T* sums;            // workspace [blocks, warps of a block, L, 2D + 2]
  int64_t tiles;      // of kThreads rows
  int64_t blocks;     // block i has the tiles i, i + blocks, ...

  ADE_HD PlanarFlowState<T> state(int64_t l, int64_t row) const {
    return {states + l * this->dim * this->rows + row, this->rows};
  }
  ADE_HD T* sum(int64_t warp, int64_t l) const { return sums + (warp * this->layers + l) * this->size(); }
};

// --- bodies ---

template <class T>
struct PlanarFlowMath {
  using V = T;
  static ADE_HD T tanh(T a) { return std::tanh(a); }
  static ADE_HD T log(T y) { return std::log(y); }
};

template <class T>
struct PlanarFlowConstrain {
  using Args = PlanarFlowArgs<T>;
  struct State {};
  struct Shared {};
  static constexpr int kBlocks = 1;

  template <class Block>
  static ADE_HD void run(Block& block, const Args* args) {
    const int64_t first = block.x() * kThreads;
    block.each([=](int t, State&) {
      const int64_t l = first + t;
      if (l >= args->layers) return;
      planar_flow::constrain(args->u + l * args->dim, args->w + l * args->dim, args->b[l], args->dim,
                             args->numbers + l * args->size());
    });
  }
};

template <class T>
struct PlanarFlowBody {
  using Args = PlanarFlowForwardArgs<T>;
  struct State {};
  struct Shared {};
  static constexpr int kBlocks = 4;

  static ADE_HD void sample(const Args* args, int64_t row, const PlanarFlowState<T>& x) {
    T log_det = 0;
    for (int j = 0; j < args->dim; ++j) x[j] = args->z[row * args->dim + j];
    for (int64_t l = 0; l < args->layers; ++l) {
      const auto layer = args->layer(l);
      const T h = planar_flow::height<PlanarFlowMath<T>>(x, layer);
      planar_flow::move(x, h, layer, x);
      log_det += PlanarFlowMath<T>::log(planar_flow::determinant(h, layer));
      args->heights[l * args->rows + row] = h;
    }
    for (int j = 0; j < args->dim; ++j) args->x[row * args->dim + j] = x[j];
    args->log_det[row] = log_det;
  }

  template <class Block>
  static ADE_HD void run(Block& block, const Args* args) {
    const int64_t first = block.x() * kThreads;
    char* const memory = block.memory();
    block.each([=](int t, State&) {
      if (first + t < args->rows) sample(args, first + t, args->own_state(memory, t));
    });
  }
};

template <class T>
struct PlanarFlowBackwardBody {
  using Args = PlanarFlowBackwardArgs<T>;
  struct State {
    planar_flow::MapVjp<T> vjp;
    T term;
  };
  struct Shared {};
  static constexpr int kBlocks = 4;

  // The states, by the heights, and dx.
  static ADE_HD void begin(const Args* args, int64_t row, const PlanarFlowState<T>& dx) {
    const auto z = args->state(0, row);
    for (int j = 0; j < args->dim; ++j) {
      z[j] = args->z[row * args->dim + j];
      dx[j] = args->dx[row * args->dim + j];
    }
    for (int64_t l = 0; l + 1 < args->layers; ++l) {
      planar_flow::move(args->state(l, row), args->heights[l * args->rows + row], args->layer(l),
                        args->state(l + 1, row));
    }
  }

  // sum[i] += the warp's part of the i-th cotangent; a block's first tile has nothing to add it to.
  template <class Block>
  static ADE_HD void add_number(Block& block, const Args* args, int64_t tile, int64_t l, int i) {
    const int64_t first = tile * kThreads, warp = block.x() * kWarps;
    char* const memory = block.memory();
    block.each([=](int t, State& s) {
      const int64_t row = first + t;
      s.term = row < args->rows ? planar_flow::number_vjp(i, s.vjp, args->state(l, row),
                                                          args->own_state(memory, t), args->dim)
                                : T(0);
    });
    block.lane_sum(&State::term, kWarp);
    block.each([=](int t, State& s) {
      if (t % kWarp != 0) return;
      T& sum = args->sum(warp + t / kWarp, l)[i];
      sum = tile < args->blocks ? s.term : sum + s.term;
    });
  }

  template <class Block>
  static ADE_HD void layer_back(Block& block, const Args* args, int64_t tile, int64_t l) {
    const int64_t first = tile * kThreads;
    char* const memory = block.memory();
    block.each([=](int t, State& s) {
      const int64_t row = first + t;
      if (row >= args->rows) return;
      s.vjp = planar_flow::map_vjp(args->own_state(memory, t), args->dlog_det[row],
                                   args->heights[l * args->rows + row], args->layer(l));
    });
    for (int i = 0; i < args->size(); ++i) add_number(block, args, tile, l, i);
    block.each([=](int t, State& s) {
      if (first + t < args->rows) planar_flow::move_vjp(args->own_state(memory, t), s.vjp, args->layer(l));
    });
  }

  template <class Block>
  static ADE_HD void run(Block& block, const Args* args) {
    char* const memory = block.memory();
    for (int64_t tile = block.x(); tile < args->tiles; tile += args->blocks) {
      const int64_t first = tile * kThreads;
      block.each([=](int t, State&) {
        if (first + t < args->rows) begin(args, first + t, args->own_state(memory, t));
      });
      for (int64_t l = args->layers - 1; l >= 0; --l) layer_back(block, args, tile, l);
      block.each([=](int t, State&) {
        const int64_t row = first + t;
        if (row >= args->rows) return;
        const auto dx = args->own_state(memory, t);
        for (int j = 0; j < args->dim; ++j) args->dz[row * args->dim + j] = dx[j];
      });
    }
  }
};

template <class T>
struct PlanarFlowReduce {
  using Args = PlanarFlowBackwardArgs<T>;
  struct State {};
  struct Shared {
    double dnumbers[2 * kPlanarFlowDims + 2];
  };
  static constexpr int kBlocks = 4;

  template <class Block>
  static ADE_HD void run(Block& block, const Args* args) {
    const int64_t l = block.x();
    double* const dnumbers = block.shared()->dnumbers;
    block.each([=](int t, State&) {
      if (t >= args->size()) return;
      double total = 0;
      for (int64_t warp = 0; warp < args->blocks * kWarps; ++warp) total += args->sum(warp, l)[t];
      dnumbers[t] = total;
    });
    block.sync();
    block.each([=](int t, State&) {
      const int64_t at = l * args->dim;
      if (t == 0)
        planar_flow::constrain_vjp(dnumbers, args->u + at, args->w + at, args->dim, args->du + at,
                                   args->dw + at, args->db + l);
    });
  }
};

// --- launches ---

inline int64_t tiles_of_rows(int64_t rows) { return (rows + kThreads - 1) / kThreads; }

template <class T, class Args, class Launch>
void start_planar_flow(Args& args, const Launch& from, WorkspaceParts& workspace) {
  args.rows = from.rows;
  args.layers = from.layers;
  args.dim = static_cast<int32_t>(from.cols);
  args.u = static_cast<const T*>(from.u);
  args.w = static_cast<const T*>(from.w);
  args.b = static_cast<const T*>(from.b);
  args.z = static_cast<const T*>(from.z);
  args.numbers = workspace.take<T>(args.layers * args.size() * static_cast<int64_t>(sizeof(T)));
}
template <class T>
PlanarFlowForwardArgs<T> plan_planar_flow(const PlanarFlow& from, WorkspaceParts& workspace) {
  PlanarFlowForwardArgs<T> args = {};
  start_planar_flow<T>(args, from, workspace);
  args.x = static_cast<T*>(from.x);
  args.log_det = static_cast<T*>(from.log_det);
  args.heights = static_cast<T*>(from.heights);
  return args;
}
template <class T>
PlanarFlowBackwardArgs<T> plan_planar_flow(const PlanarFlowBackward& from, WorkspaceParts& workspace) {
  constexpr int64_t kMostBlocks = 128, kSize = sizeof(T);
  PlanarFlowBackwardArgs<T> args = {};
  start_planar_flow<T>(args, from, workspace);
  args.dx = static_cast<const T*>(from.dx);
  args.dlog_det = static_cast<const T*>(from.dlog_det);
  args.heights = static_cast<const T*>(from.heights);
  args.dz = static_cast<T*>(from.dz);
  args.du = static_cast<T*>(from.du);
  args.dw = static_cast<T*>(from.dw);
  args.db = static_cast<T*>(from.db);
  args.tiles = tiles_of_rows(args.rows);
  args.blocks = args.tiles < kMostBlocks ? args.tiles : kMostBlocks;
  args.states = workspace.take<T>(args.layers * args.dim * args.rows * kSize);
  args.sums = workspace.take<T>(args.blocks * kWarps * args.layers * args.size() * kSize);
  return args;
}

template <class Backend, class T>
int run_constrain(Backend& backend, const PlanarFlowArgs<T>& args) {
  return backend.template run<PlanarFlowConstrain<T>>(tiles_of_rows(args.layers), 1, args);
}
template <class Backend, class T>
int run_planar_flow(Backend& backend, const PlanarFlowForwardArgs<T>& args) {
  if (args.rows == 0) return 0;
  const int error = run_constrain<Backend, T>(backend, args);
  if (error != 0) return error;
  return backend.template run<PlanarFlowBody<T>>(tiles_of_rows(args.rows), 1, args, args.memory_bytes());
}
template <class Backend, class T>
int run_planar_flow(Backend& backend, const PlanarFlowBackwardArgs<T>& args) {
  int error = 0;
  if (args.rows > 0) error = run_constrain<Backend, T>(backend, args);
  if (error == 0 && args.rows > 0)
    error = backend.template run<PlanarFlowBackwardBody<T>>(args.blocks, 1, args, args.memory_bytes());
  return error != 0 ? error : backend.template run<PlanarFlowReduce<T>>(args.layers, 1, args);
}

template <class Launch>
int64_t planar_flow_bytes(const Launch& from) {
  WorkspaceParts workspace(nullptr);
  from.dtype == kFloat64 ? void(plan_planar_flow<double>(from, workspace))
                         : void(plan_planar_flow<float>(from, workspace));
  return workspace.bytes();
}
template <class Backend, class Launch>
int launch_planar_flow(Backend& backend, const Launch& from) {
  WorkspaceParts workspace(from.workspace);
  return from.dtype == kFloat64 ? run_planar_flow(backend, plan_planar_flow<double>(from, workspace))
                                : run_planar_flow(backend, plan_planar_flow<float>(from, workspace));
}

inline int64_t workspace_bytes(const PlanarFlow& from) { return planar_flow_bytes(from); }
inline int64_t workspace_bytes(const PlanarFlowBackward& from) { return planar_flow_bytes(from); }
template <class Backend>
int launch(Backend& backend, const PlanarFlow& from) {
  return launch_planar_flow(backend, from);
}
template <class Backend>
int launch(Backend& backend, const PlanarFlowBackward& from) {
  return launch_planar_flow(backend, from);
}

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
