// What log-weights are made of, and their figures. Conventions: launch/clips.h. Of the CPU alone.
#pragma once

#include "launch/clips.h"

namespace ade {

// log N(noise; 0, I), a sum over columns for each row.
struct NormalLogDensity {
  Dtype dtype;  // float32 or float64
  int64_t rows, cols;
  const void* noise;  // [B, D]
  void* log_q;        // [B]
  void* workspace;
};

// value - energy - log_q - size/2 log(2 pi / weight) of each sample.
struct LogWeights {
  Dtype dtype;  // float32 or float64
  int64_t rows;
  double weight, size;                 // lambda, and the momentum's dimensions
  const void *value, *energy, *log_q;  // [K]
  void* log_w;                         // [K]
  void* workspace;
};

// log mean w, and (mean w)^2 / mean w^2.
struct LogWeightFigures {
  Dtype dtype;  // of log_w and log_mean: float32 or float64
  int64_t rows;
  const void* log_w;  // [K]
  void* log_mean;     // []
  void* ess;          // []
  void* workspace;
};

namespace cpu {
int64_t workspace_bytes(const NormalLogDensity& args);
int64_t workspace_bytes(const LogWeights& args);
int64_t workspace_bytes(const LogWeightFigures& args);
void launch(const NormalLogDensity& args, Parallel parallel);
void launch(const LogWeights& args, Parallel parallel);
void launch(const LogWeightFigures& args, Parallel parallel);
}  // namespace cpu

}  // namespace ade
