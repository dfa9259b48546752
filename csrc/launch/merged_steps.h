// Leapfrog's kicks and drifts from its step sizes, and the way back. Conventions: launch/clips.h. Of the CPU
// alone.
#pragma once

#include "launch/clips.h"

namespace ade {

// kick: half a step at both ends, and half of the step before and half of the one after at each point
// between.
struct MergedSteps {
  Dtype dtype;                // float32 or float64
  int64_t steps, rows, cols;  // T, T or 1, D
  const void* step;           // [rows, D]; one row: of all steps
  void* kick;                 // [T + 1, D]
  void* drift;                // [T, D]
  void* workspace;
};

struct MergedStepsBackward {
  Dtype dtype;
  int64_t steps, rows, cols;
  const void* dkick;   // [T + 1, D]
  const void* ddrift;  // [T, D], or null: 0
  void* dstep;         // [rows, D]
  void* workspace;
};

namespace cpu {
int64_t workspace_bytes(const MergedSteps& args);
int64_t workspace_bytes(const MergedStepsBackward& args);
void launch(const MergedSteps& args, Parallel parallel);
void launch(const MergedStepsBackward& args, Parallel parallel);
}  // namespace cpu

}  // namespace ade
