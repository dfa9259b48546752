// All layers of a planar flow, with their constraint, and their vector-Jacobian product
// (flows/planar_flow.h). Conventions: launch/clips.h.
#pragma once

#include "launch/clips.h"

namespace ade {

constexpr int kPlanarFlowDims = 16;  // at most so many columns

struct PlanarFlow {
  Dtype dtype;                 // float32 or float64
  int64_t rows, cols, layers;  // B, D from 1 to kPlanarFlowDims, L from 1
  const void* z;               // [B, D]
  const void* u;               // [L, D]
  const void* w;               // [L, D]
  const void* b;               // [L]
  void* x;                     // [B, D]
  void* log_det;               // [B]
  void* heights;               // [L, B] the tanh of each layer
  void* workspace;
};

// The states between the layers are computed again forwards from z, by the heights and without a tanh: the
// very numbers that the forward pass saw. Backwards from x they would lose what a large û h has rounded away.
struct PlanarFlowBackward {
  Dtype dtype;
  int64_t rows, cols, layers;
  const void* dx;        // [B, D]
  const void* dlog_det;  // [B]
  const void* z;         // [B, D]
  const void* u;         // [L, D]
  const void* w;         // [L, D]
  const void* b;         // [L]
  const void* heights;   // [L, B]
  void* dz;              // [B, D]
  void* du;              // [L, D], summed over the batch like all that follows
  void* dw;              // [L, D]
  void* db;              // [L]
  void* workspace;
};

namespace cpu {

int64_t workspace_bytes(const PlanarFlow& args);
int64_t workspace_bytes(const PlanarFlowBackward& args);

void launch(const PlanarFlow& args, Parallel parallel);
void launch(const PlanarFlowBackward& args, Parallel parallel);

}  // namespace cpu

namespace cuda {

int64_t workspace_bytes(const PlanarFlow& args);
int64_t workspace_bytes(const PlanarFlowBackward& args);

int launch(const PlanarFlow& args, void* stream);
int launch(const PlanarFlowBackward& args, void* stream);

}  // namespace cuda
}  // namespace ade
