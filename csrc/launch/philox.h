// Standard normals from a key and a counter (common/philox.h). Conventions: launch/clips.h.
#pragma once

#include "launch/clips.h"

namespace ade {

// A row's elements do not depend on how many rows there are, nor on the threads. float32 and bfloat16 have
// the same normals, rounded; float64 has others.
struct PhiloxNormal {
  Dtype dtype;
  int64_t rows, cols;  // B, D
  const void* seed;    // [1] int64, the key
  int64_t step;        // from 0 to 2^32 - 1
  void* noise;         // [B, D]
  void* workspace;
};

namespace cpu {
int64_t workspace_bytes(const PhiloxNormal& args);
void launch(const PhiloxNormal& args, Parallel parallel);
}  // namespace cpu

namespace cuda {
int64_t workspace_bytes(const PhiloxNormal& args);
int launch(const PhiloxNormal& args, void* stream);
}  // namespace cuda

}  // namespace ade
