// Leapfrog, eq. (10), and damped leapfrog: arguments and launches of the kick, the drift, the fused pair, and
// their vector-Jacobian products (steps/leapfrog.h, steps/damped_leapfrog.h). Conventions: launch/clips.h.
#pragma once

#include "launch/clips.h"

namespace ade {

// v_out = damping v + step clip(grad)
struct LeapfrogKick {
  Dtype dtype;
  int64_t rows, cols;  // B, D
  const void* v;       // [B, D] S
  const void* grad;    // [B, D] S
  const void* step;    // [D] A
  double damping;
  ClipArgs grad_clip;
  void* v_out;  // [B, D] S
  void* workspace;
};

struct LeapfrogKickBackward {
  Dtype dtype;
  int64_t rows, cols;
  const void* dv_out;  // [B, D] S
  const void* grad;    // [B, D] S
  const void* step;    // [D] A
  double damping;
  ClipArgs grad_clip;
  void* dv;     // [B, D] S
  void* dgrad;  // [B, D] S
  void* dstep;  // [D] A, summed over the batch
  void* workspace;
};

// x_out = clamp(x + step clip(v), lo, hi)
struct LeapfrogDrift {
  Dtype dtype;
  int64_t rows, cols;
  const void* x;     // [B, D] S
  const void* v;     // [B, D] S
  const void* step;  // [D] A
  ClipArgs momentum_clip;
  double lo, hi;
  void* x_out;  // [B, D] S
  void* workspace;
};

struct LeapfrogDriftBackward {
  Dtype dtype;
  int64_t rows, cols;
  const void* dx_out;  // [B, D] S
  const void* x;       // [B, D] S
  const void* v;       // [B, D] S
  const void* step;    // [D] A
  ClipArgs momentum_clip;
  double lo, hi;
  void* dx;     // [B, D] S
  void* dv;     // [B, D] S
  void* dstep;  // [D] A, summed over the batch
  void* workspace;
};

// v_out = damping v + kick_step clip(grad); x_out = clamp(x + drift_step clip(v_out), lo, hi): one pass over
// memory
struct LeapfrogKickDrift {
  Dtype dtype;
  int64_t rows, cols;
  const void* x;           // [B, D] S
  const void* v;           // [B, D] S
  const void* grad;        // [B, D] S
  const void* kick_step;   // [D] A
  const void* drift_step;  // [D] A
  double damping;
  ClipArgs grad_clip;
  ClipArgs momentum_clip;
  double lo, hi;
  void* x_out;  // [B, D] S
  void* v_out;  // [B, D] S
  void* workspace;
};

struct LeapfrogKickDriftBackward {
  Dtype dtype;
  int64_t rows, cols;
  const void* dx_out;      // [B, D] S
  const void* dv_out;      // [B, D] S, of the momentum that the pair returned
  const void* x;           // [B, D] S
  const void* v_out;       // [B, D] S, after the kick
  const void* grad;        // [B, D] S
  const void* kick_step;   // [D] A
  const void* drift_step;  // [D] A
  double damping;
  ClipArgs grad_clip;
  ClipArgs momentum_clip;
  double lo, hi;
  void* dx;           // [B, D] S
  void* dv;           // [B, D] S
  void* dgrad;        // [B, D] S
  void* dkick_step;   // [D] A, summed over the batch
  void* ddrift_step;  // [D] A, summed over the batch
  void* workspace;
};

namespace cpu {

int64_t workspace_bytes(const LeapfrogKick& args);
int64_t workspace_bytes(const LeapfrogKickBackward& args);
int64_t workspace_bytes(const LeapfrogDrift& args);
int64_t workspace_bytes(const LeapfrogDriftBackward& args);
int64_t workspace_bytes(const LeapfrogKickDrift& args);
int64_t workspace_bytes(const LeapfrogKickDriftBackward& args);

void launch(const LeapfrogKick& args, Parallel parallel);
void launch(const LeapfrogKickBackward& args, Parallel parallel);
void launch(const LeapfrogDrift& args, Parallel parallel);
void launch(const LeapfrogDriftBackward& args, Parallel parallel);
void launch(const LeapfrogKickDrift& args, Parallel parallel);
void launch(const LeapfrogKickDriftBackward& args, Parallel parallel);

}  // namespace cpu

namespace cuda {

int64_t workspace_bytes(const LeapfrogKick& args);
int64_t workspace_bytes(const LeapfrogKickBackward& args);
int64_t workspace_bytes(const LeapfrogDrift& args);
int64_t workspace_bytes(const LeapfrogDriftBackward& args);
int64_t workspace_bytes(const LeapfrogKickDrift& args);
int64_t workspace_bytes(const LeapfrogKickDriftBackward& args);

int launch(const LeapfrogKick& args, void* stream);
int launch(const LeapfrogKickBackward& args, void* stream);
int launch(const LeapfrogDrift& args, void* stream);
int launch(const LeapfrogDriftBackward& args, void* stream);
int launch(const LeapfrogKickDrift& args, void* stream);
int launch(const LeapfrogKickDriftBackward& args, void* stream);

}  // namespace cuda
}  // namespace ade
