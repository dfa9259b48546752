// Plain arguments shared by every launch: storage type, clips, scales, and how the host threads its loops.
//
// Conventions of this folder, for both devices:
// * States are contiguous rows [B, D]; pointers need not be aligned beyond their element.
// * S is the storage type named by `dtype`; A, the type of steps, scales, log-dets and of all arithmetic, is
// float64
//   for float64 and float32 for float32 and bfloat16.
// * Outputs never overlap inputs. rows = 0 or cols = 0 is legal: nothing is written but cotangents of [D]
// (zeros).
// * `workspace` is device memory of `workspace_bytes(args)` bytes, aligned to 64; its content is undefined.
// * Deterministic: reductions over the batch have an order that depends on rows and cols alone.
// * A fused forward kernel rounds what the separate kernels would store (the drift sees the momentum as
// stored in S):
//   kick_drift equals kick, then drift, bit for bit.
// * cpu::launch does not fail. cuda::launch queues its work on `stream`, does not wait for it, and returns a
// cudaError_t
//   (0 = success; cuda::error_string tells it in words). Neither prints, throws or exits.
#pragma once

#include <cstdint>

#include "common/clip.h"

namespace ade {

enum Dtype : int32_t { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2 };

// Which clip, and its bound c. `mode` is a ClipMode.
struct ClipArgs {
  int32_t mode;
  double bound;
};

// A diagonal scaling e^S of one momentum or position. data is null for the identity (e^S = 1, no log-det).
struct ScaleArgs {
  const void* data;    // [B, D] or [1, D] A, or null
  int64_t row_stride;  // elements from one sample's row to the next: D, or 0 where the batch shares one row
};

namespace cpu {

// Runs body(context, begin, end) over pieces of [0, count), at least `grain` long each, on the caller's
// threads. What each index computes does not depend on the pieces.
using Parallel = void (*)(int64_t count, int64_t grain,
                          void (*body)(const void* context, int64_t begin, int64_t end), const void* context);

}  // namespace cpu

namespace cuda {

// The text of an error code that a launch returned.
const char* error_string(int code);

}  // namespace cuda
}  // namespace ade
