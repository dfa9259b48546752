// ReLU and leaky ReLU with one bit per entry to have their slopes from (common/kink.h). Conventions:
// launch/clips.h; here outputs may be inputs.
#pragma once

#include "launch/clips.h"

namespace ade {

struct KinkBend {
  Dtype dtype;
  int64_t rows, cols;
  const void* z;  // [rows, cols]
  double slope;   // where z is not positive
  void* out;      // [rows, cols], or z
  uint8_t* bits;  // [ceil(rows cols / 8)]; those behind the last entry are 0
  void* workspace;
};

struct KinkSlopes {
  Dtype dtype;
  int64_t rows, cols;
  const void* d;        // [rows, cols]
  const uint8_t* bits;  // [ceil(rows cols / 8)]
  double slope;
  void* out;  // [rows, cols], or d: d times the slopes
  void* workspace;
};

namespace cpu {
int64_t workspace_bytes(const KinkBend& args);
int64_t workspace_bytes(const KinkSlopes& args);
void launch(const KinkBend& args, Parallel parallel);
void launch(const KinkSlopes& args, Parallel parallel);
}  // namespace cpu

namespace cuda {
int64_t workspace_bytes(const KinkBend& args);
int64_t workspace_bytes(const KinkSlopes& args);
int launch(const KinkBend& args, void* stream);
int launch(const KinkSlopes& args, void* stream);
}  // namespace cuda

}  // namespace ade
