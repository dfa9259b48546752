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

// (1/p) log((1 - share) mean w^p + share mean b^p), and its derivatives by the log-weights.
struct RenyiBound {
  Dtype dtype;           // float32 or float64
  int64_t rows, others;  // K, M
  double power, share;   // p > 0
  const void* log_w;     // [K]
  const void* log_b;     // [M], or null: share is 0
  void* bound;           // []
  void* dlog_w;          // [K]
  void* dlog_b;          // [M]
  void* workspace;
};

// The largest beta, of `levels` equal steps up to `most`, whose w^beta have an effective sample size of
// min_ess or more, as a fraction; at least the first.
struct TemperedPower {
  Dtype dtype;  // of log_w and power: float32 or float64
  int64_t rows, levels;
  double min_ess, most;
  const void* log_w;  // [K]
  void* power;        // []
  void* workspace;
};

namespace cpu {
int64_t workspace_bytes(const NormalLogDensity& args);
int64_t workspace_bytes(const LogWeights& args);
int64_t workspace_bytes(const LogWeightFigures& args);
int64_t workspace_bytes(const RenyiBound& args);
int64_t workspace_bytes(const TemperedPower& args);
void launch(const NormalLogDensity& args, Parallel parallel);
void launch(const LogWeights& args, Parallel parallel);
void launch(const LogWeightFigures& args, Parallel parallel);
void launch(const RenyiBound& args, Parallel parallel);
void launch(const TemperedPower& args, Parallel parallel);
}  // namespace cpu

}  // namespace ade
