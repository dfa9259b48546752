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
  const void* v;                        // [n, B, L], or null; with step, what the kick at each x_t left
  const void* drifting;                 // [m, B, L] what momentum_clip acts on, or null
  const void* log_det;                  // [n, B], or null: 0
  const void* v0;                       // [B, L], with step
  const void* step;     // [n - 1, L] or [1, L]: v_{t+1} = damping v_t + step_t / 2 clip(force_{t+1}); or null
  int64_t step_stride;  // L, or 0
  double damping;
  ClipArgs grad_clip, momentum_clip;
  bool conserves;          // there is an energy: H = -f + ½ ‖v‖²
  void* table;             // [kFigures, n]; what there is none of is 0
  void* momentum_clipped;  // [m]
  void* workspace;
};

// Of the adjoint's norms: those of one part, or of two.
struct AdjointFigures {
  Dtype dtype;  // float32 or float64
  int64_t points, rows;
  const void* norm;   // [n, B]
  const void* other;  // [n, B], or null
  void* table;        // [2, n]: mean and largest of the batch
  void* workspace;
};

namespace cpu {
int64_t workspace_bytes(const UnrollFigures& args);
int64_t workspace_bytes(const AdjointFigures& args);
void launch(const UnrollFigures& args, Parallel parallel);
void launch(const AdjointFigures& args, Parallel parallel);
}  // namespace cpu

}  // namespace ade
