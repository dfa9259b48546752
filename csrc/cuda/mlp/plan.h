// What a launch of an MLP kernel is planned to be: packed weights, the blocks and their buffers, the sums
// that each block keeps. All of it in the kernel's arguments, so that layers are run-time numbers.
#pragma once

#include "cuda/mlp/memory.h"
#include "cuda/mlp/planes.h"
#include "launch/mlp.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

constexpr int kLayerSlots = kMaxHiddenLayers + 1;

// At most so many tiles of rows are under way at a time: they fill the largest GPU, and what they share out
// does not depend on the one at hand. The backward kernels keep sums per block.
constexpr int64_t kForwardTiles = 528;
constexpr int64_t kBackwardTiles = 264;
// More rows than this get blocks of 32, which read the weights half as often; fewer would leave processors
// idle.
constexpr int64_t kRowsForWideBlocks = 4096;

// What a kernel asks of its blocks.
struct MlpUse {
  bool states;     // x, v: the unroll
  bool adjoint;    // v and terms: the unroll backwards
  bool value;      // f
  bool dgradient;  // second-order products for a cotangent of F
  bool dvalue;     // the same of f
  bool curvature;  // ζ
  bool weights;    // gradients of the weights
  bool bridged;    // of the adjoint: a force that differs from F

  bool second_order() const { return dgradient || dvalue; }
};

// Where the sums of a block start, in floats. Weights are tiles of floats (planes.h).
struct MlpSums {
  int64_t weight[kLayerSlots], bias[kLayerSlots], out, out_bias;
  int64_t kick, drift, decay, stretch;
  int64_t scale, pull, centre, noise_v, noise_x;  // scale: [T+1, D], to be summed over D
  int64_t size;
};

struct MlpPlan {
  MlpShape shape;
  float parameter;
  const float* bias[kLayerSlots];  // of layer l = 1..L
  const float* out;
  const float* out_bias;

  // The weights (pack.h), and where W_l starts among them; in Quads.
  Quad* packed;
  int64_t weight[kLayerSlots];
  int64_t plane;  // from one plane to the next
  bool resident;  // the block has its own copy in shared memory
  Buffer weights;

  int64_t rows, tiles, blocks;
  char* own;  // the blocks' parts of the workspace
  int64_t own_bytes, shared_bytes;

  // Rows [rows of a block, D] of floats.
  Buffer x, v, gradient, force, dgradient, dx, terms;  // terms: [2, rows, D], bridged [3, rows, D]
  Buffer parts;                                        // [project_parts, rows, D]
  Buffer dvalue;                                       // [rows]
  Buffer value_parts;                                  // [tiles of layer L, rows]
  // Tiles: planes of h_l, δ_l, t_l, ζ_l, with x and u for layer 0; floats of φ'_l, and of φ''_l, φ''_l G_l,
  // φ''_l G_l ż_l in turn; bits of φ'_l, a byte per lane.
  Buffer hidden[kLayerSlots], delta[kLayerSlots], tangent[kLayerSlots], zeta[kLayerSlots];
  Buffer slope[kLayerSlots], bend[kLayerSlots];

  float* block_sums;  // [blocks, sums.size]
  MlpSums sums;

  ADE_HD int width(int l) const { return l == 0 ? shape.dim : shape.width[l - 1]; }
  ADE_HD int columns(int l) const { return (width(l) + kTile - 1) / kTile; }  // of tiles
  // Of the sums that lead to the input, so that every warp has one.
  ADE_HD int project_parts() const {
    const int parts = kWarps / columns(0);
    return parts < 1 ? 1 : parts < columns(1) ? parts : columns(1);
  }
  ADE_HD bool linear() const { return shape.activation == kRelu || shape.activation == kLeakyRelu; }
};

// A kernel's arguments.
template <class Launch>
struct MlpArgs {
  Launch launch;
  MlpPlan plan;
};

inline int64_t rows_of(const MlpUnroll& a) { return a.dynamics.rows; }
inline int64_t rows_of(const MlpUnrollBackward& a) { return a.dynamics.rows; }
inline int64_t rows_of(const MlpField& a) { return a.rows; }
inline int64_t rows_of(const MlpFieldBackward& a) { return a.rows; }

inline MlpUse use_of(const MlpUnroll& a) {
  return {true, false, a.value != nullptr, false, false, false, false, false};
}
inline MlpUse use_of(const MlpUnrollBackward& a) {
  const bool weights = a.dweights.weight[0] != nullptr, smooth = !piecewise_linear(a.shape.activation);
  const bool products = !a.stopped && (smooth || weights);
  return {false, true, false, products, false, products && smooth, weights, a.dynamics.bridged()};
}
inline MlpUse use_of(const MlpField& a) {
  return {false, false, a.value != nullptr, false, false, false, false, false};
}
inline MlpUse use_of(const MlpFieldBackward& a) {
  const bool smooth = !piecewise_linear(a.shape.activation), weights = a.dweights.weight[0] != nullptr;
  const bool curvature = (a.dgrad != nullptr && smooth) || a.dvalue != nullptr;
  const bool dgradient = a.dgrad != nullptr && (curvature || weights);
  return {false, false, false, dgradient, a.dvalue != nullptr, curvature, weights, false};
}

// How many rows a block has, over kTile.
inline int row_tiles(int64_t rows, int64_t times = 1) {
  return rows * times >= kRowsForWideBlocks && rows > kTile ? 2 : 1;
}

template <class Launch>
MlpPlan plan_network(const Launch& from) {
  MlpPlan plan = {};
  plan.shape = from.shape;
  plan.parameter = from.shape.activation == kRelu ? 0.0f : static_cast<float>(from.shape.parameter);
  plan.rows = rows_of(from);
  const int layers = from.shape.layers;
  for (int l = 1; l <= layers; ++l) {
    plan.bias[l] = static_cast<const float*>(from.weights.bias[l - 1]);
    plan.weight[l] = plan.plane;
    plan.plane += int64_t{1} * plan.columns(l) * plan.columns(l - 1) * kWarp;
  }
  plan.out = static_cast<const float*>(from.weights.weight[layers]);
  plan.out_bias = static_cast<const float*>(from.weights.bias[layers]);
  return plan;
}

// The buffers, those that are read most often first: they get what there is of shared memory. The weights
// come before everything: every block reads all of them, again and again.
inline void plan_buffers(MlpPlan& plan, const MlpUse& use, int planes, int row_tiles, BlockMemory memory) {
  const int layers = plan.shape.layers;
  const int64_t block_rows = int64_t{row_tiles} * kTile, points = block_rows * plan.shape.dim * 4;
  const auto tiles = [&](int l, int64_t bytes) { return memory.take(row_tiles * plan.columns(l) * bytes); };
  const int64_t plane_bytes = planes * kPlaneTileBytes;
  const bool smooth = !plan.linear(), bend = smooth && use.dgradient;

  const int64_t weight_bytes = planes * plan.plane * static_cast<int64_t>(sizeof(Quad));
  plan.resident = memory.fits(weight_bytes);
  if (plan.resident) plan.weights = memory.take(weight_bytes);

  if (use.states) plan.x = memory.take(points);
  plan.gradient = memory.take(points);
  plan.force = use.bridged ? memory.take(points) : plan.gradient;
  plan.parts = memory.take(plan.project_parts() * points);
  if (use.states || use.adjoint) plan.v = memory.take(points);
  if (use.adjoint || use.second_order()) {
    plan.dx = memory.take(points);
    plan.dgradient = memory.take(points);
  }
  if (use.adjoint) plan.terms = memory.take((use.bridged ? 3 : 2) * points);
  if (use.dvalue) plan.dvalue = memory.take(block_rows * 4);
  if (use.value) plan.value_parts = memory.take(plan.columns(layers) * block_rows * 4);

  plan.hidden[0] = tiles(0, plane_bytes);
  if (use.dgradient) plan.tangent[0] = tiles(0, plane_bytes);
  // Without second-order products nobody reads h_l or δ_l but the next layer.
  Buffer pair[2] = {};
  for (int l = 1; l <= 2 && !use.second_order(); ++l) {
    int widest = l;
    for (int k = l; k <= layers; k += 2) widest = plan.columns(k) > plan.columns(widest) ? k : widest;
    if (l <= layers) pair[l % 2] = tiles(widest, plane_bytes);
  }
  for (int l = 1; l <= layers; ++l) {
    plan.hidden[l] = use.second_order() ? tiles(l, plane_bytes) : pair[l % 2];
    plan.delta[l] = use.second_order() ? tiles(l, plane_bytes) : plan.hidden[l];
    plan.slope[l] = tiles(l, smooth ? kFloatTileBytes : kWarp);
    if (bend) plan.bend[l] = tiles(l, kFloatTileBytes);
    if (use.dgradient && l < layers) plan.tangent[l] = tiles(l, plane_bytes);
    if (use.curvature) plan.zeta[l] = tiles(l, plane_bytes);
  }
  plan.shared_bytes = memory.shared_bytes();
  plan.own_bytes = memory.own_bytes();
}

// What a kernel sums over the batch.
struct MlpSummed {
  bool weights;
  bool kick;    // and what makes a force of F
  bool others;  // drift, decay, stretch, noise
};

inline MlpSums plan_sums(const MlpPlan& plan, const MlpSummed& of, const MlpDynamics& dynamics) {
  MlpSums sums = {};
  const auto take = [&](int64_t floats) {
    const int64_t first = sums.size;
    sums.size += (floats + 15) / 16 * 16;
    return first;
  };
  const int layers = plan.shape.layers, dim = plan.shape.dim;
  const int64_t drifts = dynamics.steps * dim, kicks = drifts + dim;
  for (int l = 1; of.weights && l <= layers; ++l) {
    sums.weight[l] = take(int64_t{kTileElements} * plan.columns(l) * plan.columns(l - 1));
    sums.bias[l] = take(plan.width(l));
  }
  if (of.weights) {
    sums.out = take(plan.width(layers));
    sums.out_bias = take(1);
  }
  if (of.kick) sums.kick = take(kicks);
  if (of.kick && dynamics.scale) sums.scale = take(kicks);
  if (of.kick && dynamics.pull) {
    sums.pull = take(kicks);
    sums.centre = take(kicks);
  }
  if (of.others) {
    sums.drift = take(drifts);
    sums.decay = take(kicks);
    sums.stretch = take(drifts);
  }
  if (of.others && dynamics.noise) {
    sums.noise_v = take(drifts);
    sums.noise_x = take(drifts);
  }
  return sums;
}

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
