// What becomes of an unroll's record: its figures, step by step. Conventions: launch/clips.h. Of the CPU
// alone.
#pragma once

#include "launch/clips.h"

namespace ade {

// The rows of `table`: means over the batch, but for the largest |H_t - H_0| and the fraction that is
// clipped.
enum Figure : int32_t {
  kValue,
  kGradNorm,
  kMomentumNorm,
  kEnergy,
  kEnergyError,
  kAcceptance,
  kLogDet,
  kEnergyErrorMax,
  kGradClipped,
  kFigures
};

struct UnrollFigures {
  Dtype dtype;                          // float32 or float64
  int64_t points, rows;                 // n, B
  int64_t cols, momentum_cols, drifts;  // D, L, m
  const void* value;                    // [n, B] f(x_t)
  const void* gradient;                 // [n, B, D]
  const void* force;                    // [n, B, L] what grad_clip acts on, or null
  const void* v;                        // [n, B, L], or null
  const void* drifting;                 // [m, B, L] what momentum_clip acts on, or null
  const void* log_det;                  // [n, B], or null: 0
  ClipArgs grad_clip, momentum_clip;
  bool conserves;          // there is an energy: H = -f + ½ ‖v‖²
  void* table;             // [kFigures, n]; what there is none of is 0
  void* momentum_clipped;  // [m]
  void* workspace;
};

namespace cpu {
int64_t workspace_bytes(const UnrollFigures& args);
void launch(const UnrollFigures& args, Parallel parallel);
}  // namespace cpu

}  // namespace ade
