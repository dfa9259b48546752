// Rational-quadratic splines, one for each coordinate of each sample, and their vector-Jacobian product
// (flows/spline.h). Conventions: launch/clips.h.
#pragma once

#include "launch/clips.h"

namespace ade {

constexpr int kSplinePieces = 64;  // at most so many

struct RationalQuadraticSpline {
  Dtype dtype;          // float32 or float64
  int64_t rows, cols;   // B, D
  int64_t pieces;       // K from 2 to kSplinePieces
  const void* x;        // [B, D]
  const void* widths;   // [B, D, K] unconstrained, like what follows
  const void* heights;  // [B, D, K]
  const void* slopes;   // [B, D, K - 1]
  double bound, least;  // B of the box, and the least slope, between 0 and 1
  bool inverse;         // from y to x
  void* x_out;          // [B, D]
  void* log_slope;      // [B, D] log of the derivative of x_out by x
  void* workspace;
};

struct RationalQuadraticSplineBackward {
  Dtype dtype;
  int64_t rows, cols, pieces;
  const void* dx_out;      // [B, D]
  const void* dlog_slope;  // [B, D]
  const void* x;           // [B, D]
  const void* widths;      // [B, D, K]
  const void* heights;     // [B, D, K]
  const void* slopes;      // [B, D, K - 1]
  const void* x_out;       // [B, D]
  double bound, least;
  bool inverse;
  void* dx;        // [B, D]
  void* dwidths;   // [B, D, K]
  void* dheights;  // [B, D, K]
  void* dslopes;   // [B, D, K - 1]
  void* workspace;
};

namespace cpu {
int64_t workspace_bytes(const RationalQuadraticSpline& args);
int64_t workspace_bytes(const RationalQuadraticSplineBackward& args);
void launch(const RationalQuadraticSpline& args, Parallel parallel);
void launch(const RationalQuadraticSplineBackward& args, Parallel parallel);
}  // namespace cpu

namespace cuda {
int64_t workspace_bytes(const RationalQuadraticSpline& args);
int64_t workspace_bytes(const RationalQuadraticSplineBackward& args);
int launch(const RationalQuadraticSpline& args, void* stream);
int launch(const RationalQuadraticSplineBackward& args, void* stream);
}  // namespace cuda

}  // namespace ade
