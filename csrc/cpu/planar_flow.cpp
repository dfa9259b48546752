// The planar flow on the CPU: a register of samples at a time goes through all layers of
// flows/planar_flow.h. Compiled once per instruction set (cpu/dispatch.cpp chooses).
#include "flows/planar_flow.h"

#include "cpu/mlp/arena.h"
#include "cpu/mlp/vector_math.h"
#include "cpu/rows.h"
#include "launch/planar_flow.h"
#include "potentials/mlp_activations.h"

namespace ade {
namespace ADE_ISA {
namespace {

namespace flow = planar_flow;
using flow::Layer;
using mlp::Arena;
using simd::kLanes;

template <class T>
struct Math {
  using V = simd::Vector<T>;
  static V tanh(V a) { return mlp::Tanh<simd::Math<T>>::at(a, a).value; }
  static V log(V y) { return simd::Math<T>::log(y); }
};

// What a map of one sample costs, in elements of a step kernel.
inline int64_t elements_of(int64_t layers, int64_t dim) { return layers * (dim + 4); }

// --- samples as lanes; `count` of them exist ---

// `missing` is in the other lanes.
template <class T>
simd::Vector<T> load_lanes(const T* from, int64_t count, T missing) {
  if (count == kLanes<T>) return simd::load(from);
  T lane[kLanes<T>];
  for (int64_t i = 0; i < kLanes<T>; ++i) lane[i] = i < count ? from[i] : missing;
  return simd::load(lane);
}
template <class T>
void store_lanes(T* to, simd::Vector<T> v, int64_t count) {
  if (count == kLanes<T>) return simd::store<T>(to, v);
  T lane[kLanes<T>];
  simd::store<T>(lane, v);
  for (int64_t i = 0; i < count; ++i) to[i] = lane[i];
}
// Between rows [count, dim] and a vector for each coordinate, 0 in the other lanes.
template <class T>
void load_states(const T* rows, int64_t count, int dim, simd::Vector<T>* x) {
  for (int j = 0; j < dim; ++j) {
    T lane[kLanes<T>] = {};
    for (int64_t i = 0; i < count; ++i) lane[i] = rows[i * dim + j];
    x[j] = simd::load(lane);
  }
}
template <class T>
void store_states(T* rows, const simd::Vector<T>* x, int64_t count, int dim) {
  for (int j = 0; j < dim; ++j) {
    T lane[kLanes<T>];
    simd::store<T>(lane, x[j]);
    for (int64_t i = 0; i < count; ++i) rows[i * dim + j] = lane[i];
  }
}

// --- layers ---

template <class T, class Args>
void constrain_all(const Args& args, T* numbers) {
  const auto u = static_cast<const T*>(args.u), w = static_cast<const T*>(args.w);
  const auto b = static_cast<const T*>(args.b);
  const int dim = static_cast<int>(args.cols);
  for (int64_t l = 0; l < args.layers; ++l) {
    flow::constrain(u + l * dim, w + l * dim, b[l], dim, numbers + l * flow::numbers_of(dim));
  }
}
template <class T>
Layer<T> layer_of(const T* numbers, int64_t l, int dim) {
  return {numbers + l * flow::numbers_of(dim), dim};
}

// --- the two passes ---

template <class T>
struct Forward {
  using V = simd::Vector<T>;
  T* numbers;  // [L, 2D + 2]

  Forward(const PlanarFlow& args, Arena& arena)
      : numbers(arena.take<T>(args.layers * flow::numbers_of(args.cols))) {}

  void samples(const PlanarFlow& args, int64_t row) const {
    const int dim = static_cast<int>(args.cols);
    const int64_t count = min_of(kLanes<T>, args.rows - row);
    V x[kPlanarFlowDims], log_det = {};
    load_states(static_cast<const T*>(args.z) + row * dim, count, dim, x);
    for (int64_t l = 0; l < args.layers; ++l) {
      const Layer<T> layer = layer_of(numbers, l, dim);
      const V h = flow::height<Math<T>>(x, layer);
      flow::move(x, h, layer, x);
      log_det += Math<T>::log(flow::determinant(h, layer));
      store_lanes(static_cast<T*>(args.heights) + l * args.rows + row, h, count);
    }
    store_states(static_cast<T*>(args.x) + row * dim, x, count, dim);
    store_lanes(static_cast<T*>(args.log_det) + row, log_det, count);
  }

  void launch(const PlanarFlow& args, cpu::Parallel parallel) const {
    constrain_all(args, numbers);
    parallel_for(parallel, ceil_div(args.rows, kLanes<T>), kLanes<T> * elements_of(args.layers, args.cols),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) samples(args, i * kLanes<T>);
                 });
  }
};

// Rows in blocks whose number depends on the shape alone (cpu/rows.h); a block's sums keep their lanes apart
// until the blocks are added, in their order.
template <class T>
struct Backward {
  using V = simd::Vector<T>;
  RowBlocks blocks;
  T* numbers;  // [L, 2D + 2]
  V* sums;     // [blocks, L, 2D + 2]
  V* states;   // [blocks, L, D], each before its map

  Backward(const PlanarFlowBackward& args, Arena& arena) : blocks(args.rows, args.layers * args.cols) {
    const int64_t all = args.layers * flow::numbers_of(args.cols);
    numbers = arena.take<T>(all);
    sums = arena.take<V>(blocks.count * all);
    states = arena.take<V>(blocks.count * args.layers * args.cols);
  }

  void samples(const PlanarFlowBackward& args, int64_t row, int64_t count, V* sum, V* state) const {
    const int dim = static_cast<int>(args.cols), all = flow::numbers_of(dim);
    // Missing samples have no cotangents and, at a height of 1, the determinant 1: they add 0 to every sum.
    const auto height = [&](int64_t l) {
      return load_lanes(static_cast<const T*>(args.heights) + l * args.rows + row, count, T(1));
    };
    load_states(static_cast<const T*>(args.z) + row * dim, count, dim, state);
    for (int64_t l = 0; l + 1 < args.layers; ++l) {
      flow::move(state + l * dim, height(l), layer_of(numbers, l, dim), state + (l + 1) * dim);
    }
    V dx[kPlanarFlowDims];
    load_states(static_cast<const T*>(args.dx) + row * dim, count, dim, dx);
    const V dlog_det = load_lanes(static_cast<const T*>(args.dlog_det) + row, count, T(0));
    for (int64_t l = args.layers - 1; l >= 0; --l) {
      const Layer<T> layer = layer_of(numbers, l, dim);
      const auto vjp = flow::map_vjp(dx, dlog_det, height(l), layer);
      for (int i = 0; i < all; ++i) {
        sum[l * all + i] += flow::number_vjp(i, vjp, state + l * dim, dx, dim);
      }
      flow::move_vjp(dx, vjp, layer);
    }
    store_states(static_cast<T*>(args.dz) + row * dim, dx, count, dim);
  }

  void block(const PlanarFlowBackward& args, int64_t index) const {
    const int64_t all = args.layers * flow::numbers_of(args.cols), end = blocks.begin(index + 1);
    V* const sum = sums + index * all;
    for (int64_t i = 0; i < all; ++i) sum[i] = V{};
    for (int64_t row = blocks.begin(index); row < end; row += kLanes<T>) {
      samples(args, row, min_of(kLanes<T>, end - row), sum, states + index * args.layers * args.cols);
    }
  }

  void add_blocks(const PlanarFlowBackward& args, int64_t l) const {
    const int dim = static_cast<int>(args.cols), all = flow::numbers_of(dim);
    double dnumbers[2 * kPlanarFlowDims + 2] = {};
    for (int64_t index = 0; index < blocks.count; ++index) {
      const V* const sum = sums + (index * args.layers + l) * all;
      for (int i = 0; i < all; ++i) dnumbers[i] += simd::sum<T>(sum[i]);
    }
    flow::constrain_vjp(dnumbers, static_cast<const T*>(args.u) + l * dim,
                        static_cast<const T*>(args.w) + l * dim, dim, static_cast<T*>(args.du) + l * dim,
                        static_cast<T*>(args.dw) + l * dim, static_cast<T*>(args.db) + l);
  }

  void launch(const PlanarFlowBackward& args, cpu::Parallel parallel) const {
    constrain_all(args, numbers);
    parallel_for(parallel, blocks.count, blocks.each * elements_of(args.layers, args.cols),
                 [&](int64_t first, int64_t last) {
                   for (int64_t i = first; i < last; ++i) block(args, i);
                 });
    for (int64_t l = 0; l < args.layers; ++l) add_blocks(args, l);
  }
};

template <template <class> class Pass, class Args, class Body>
void visit_pass(const Args& args, void* memory, const Body& body) {
  Arena arena(memory);
  if (args.dtype == kFloat64) {
    body(Pass<double>(args, arena), arena);
  } else {
    body(Pass<float>(args, arena), arena);
  }
}

template <template <class> class Pass, class Args>
int64_t bytes_of(const Args& args) {
  int64_t bytes = 0;
  visit_pass<Pass>(args, nullptr, [&](const auto&, const Arena& arena) { bytes = arena.used(); });
  return bytes;
}

}  // namespace

int64_t workspace_bytes(const PlanarFlow& args) { return bytes_of<Forward>(args); }
int64_t workspace_bytes(const PlanarFlowBackward& args) { return bytes_of<Backward>(args); }

void launch(const PlanarFlow& args, cpu::Parallel parallel) {
  visit_pass<Forward>(args, args.workspace,
                      [&](const auto& pass, const Arena&) { pass.launch(args, parallel); });
}
void launch(const PlanarFlowBackward& args, cpu::Parallel parallel) {
  visit_pass<Backward>(args, args.workspace,
                       [&](const auto& pass, const Arena&) { pass.launch(args, parallel); });
}

}  // namespace ADE_ISA
}  // namespace ade
