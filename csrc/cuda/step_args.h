// The typed arguments of every step kernel: what launch/ passes, in one shape for all steps, and the plan
// (plan.h).
#pragma once

#include "common/scalar.h"
#include "launch/clips.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

// The sums over the batch that a backward pass owes.
enum Sum { kStepSum, kNextStepSum, kDriftStepSum, kScaleVSum, kScaleXSum, kSums };

template <class A>
struct Clip {
  int32_t mode;
  A bound;
  ADE_HD bool by_norm() const { return mode == kClipNorm; }
};

// One diagonal scaling and its cotangent.
template <class A>
struct Scale {
  const A* data;       // null: identity
  int64_t row_stride;  // 0: shared by the batch
  ADE_HD bool per_sample() const { return data != nullptr && row_stride != 0; }
};

template <class Storage>
struct StepArgs {
  using A = acc_t<Storage>;

  int64_t rows, cols;  // B, D
  // The state: kicks read v and force, drifts x and u (the clipped momentum's source; a fused forward pass
  // has its own).
  const Storage* x;      // [B, D]
  const Storage* v;      // [B, D]
  const Storage* force;  // [B, D]
  const Storage* u;      // [B, D]
  Scale<A> scale_v, scale_x;
  const A* step;        // [D]
  const A* next_step;   // [D] or null
  const A* drift_step;  // [D]
  A damping;
  Clip<A> force_clip, momentum_clip;
  A lo, hi;

  // Forward.
  Storage* x_out;  // [B, D]
  Storage* v_out;  // [B, D]
  A* log_det;      // [B] or null

  // Backward: cotangents in, cotangents out.
  const Storage* dx_out;  // [B, D]
  const Storage* dv_out;  // [B, D]
  const A* dlog_det;      // [B] or null
  Storage* dx;            // [B, D]
  Storage* dv;            // [B, D]
  Storage* dforce;        // [B, D]
  Storage* du;            // [B, D]
  A* dscale_v;            // [B, D], per-sample scales only
  A* dscale_x;            // [B, D], per-sample scales only
  A* sums[kSums];         // [D] each, or null: not owed
  A* row_clips;           // workspace [B, 4] of RowClips, or null: no norm clip
  A* partial_sums;        // workspace [kSums of this step][chunks][D], or null: one chunk, straight to `sums`

  // Plan. Forward and row clips: 2^group_bits threads per row, each row over `splits` blocks. Backward: tiles
  // of 2^width_bits column threads, `chunks` pieces of `chunk_rows` rows.
  int32_t group_bits;
  int32_t width_bits;
  int64_t splits;
  int64_t chunks;
  int64_t chunk_rows;
  bool aligned;  // every state, step and scale pointer to 16 bytes

  ADE_HD int group() const { return 1 << group_bits; }
  ADE_HD int width() const { return 1 << width_bits; }
};

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
