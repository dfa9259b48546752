// Generalized leapfrog, eq. (13): arguments and launches of the (merged) kick, the drift, the fused pair, and
// their vector-Jacobian products (steps/generalized_leapfrog.h). Conventions: launch/clips.h. Momentum rows
// are [B, L], position rows [B, D]; `cols` is the length of the rows at hand.
#pragma once

#include "launch/clips.h"

namespace ade {

// v_out = v e^S + step clip(force), and with next_step once more from there: v_out <- v_out e^S + next_step
// clip(force). log_det = (1 or 2) Σ_l S.
struct GeneralizedLeapfrogKick {
  Dtype dtype;
  int64_t rows, cols;     // B, L
  const void* v;          // [B, L] S
  const void* force;      // [B, L] S
  ScaleArgs scale;        // S_v
  const void* step;       // [L] A
  const void* next_step;  // [L] A, or null: a half kick
  ClipArgs clip;
  void* v_out;    // [B, L] S
  void* log_det;  // [B] A
  void* workspace;
};

struct GeneralizedLeapfrogKickBackward {
  Dtype dtype;
  int64_t rows, cols;
  const void* dv_out;     // [B, L] S
  const void* dlog_det;   // [B] A
  const void* v;          // [B, L] S, before the kick
  const void* force;      // [B, L] S
  ScaleArgs scale;        // S_v
  const void* step;       // [L] A
  const void* next_step;  // [L] A, or null
  ClipArgs clip;
  void* dv;          // [B, L] S
  void* dforce;      // [B, L] S
  void* dscale;      // [B, L] A; [1, L] A summed over the batch where it shares S; null without scale
  void* dstep;       // [L] A, summed over the batch
  void* dnext_step;  // [L] A, summed over the batch; null without next_step
  void* workspace;
};

// x_out = clamp(x e^{S_x} + step clip(u), lo, hi), u = g_x(v). log_det = Σ_d S_x.
struct GeneralizedLeapfrogDrift {
  Dtype dtype;
  int64_t rows, cols;  // B, D
  const void* x;       // [B, D] S
  const void* u;       // [B, D] S
  ScaleArgs scale;     // S_x
  const void* step;    // [D] A
  ClipArgs clip;
  double lo, hi;
  void* x_out;    // [B, D] S
  void* log_det;  // [B] A
  void* workspace;
};

struct GeneralizedLeapfrogDriftBackward {
  Dtype dtype;
  int64_t rows, cols;
  const void* dx_out;    // [B, D] S
  const void* dlog_det;  // [B] A
  const void* x;         // [B, D] S
  const void* u;         // [B, D] S
  ScaleArgs scale;       // S_x
  const void* step;      // [D] A
  ClipArgs clip;
  double lo, hi;
  void* dx;      // [B, D] S
  void* du;      // [B, D] S
  void* dscale;  // [B, D] A; [1, D] A summed over the batch where it shares S_x; null without scale
  void* dstep;   // [D] A, summed over the batch
  void* workspace;
};

// The kick and then the drift with u = v_out (g_x = identity, L = D): one pass over memory.
// log_det = (1 or 2) Σ S_v + Σ S_x.
struct GeneralizedLeapfrogKickDrift {
  Dtype dtype;
  int64_t rows, cols;      // B, D
  const void* x;           // [B, D] S
  const void* v;           // [B, D] S
  const void* force;       // [B, D] S
  ScaleArgs scale_v;       // S_v
  ScaleArgs scale_x;       // S_x
  const void* step;        // [D] A
  const void* next_step;   // [D] A, or null: a half kick
  const void* drift_step;  // [D] A
  ClipArgs force_clip;
  ClipArgs drift_clip;
  double lo, hi;
  void* x_out;    // [B, D] S
  void* v_out;    // [B, D] S
  void* log_det;  // [B] A
  void* workspace;
};

struct GeneralizedLeapfrogKickDriftBackward {
  Dtype dtype;
  int64_t rows, cols;
  const void* dx_out;      // [B, D] S
  const void* dv_out;      // [B, D] S
  const void* dlog_det;    // [B] A
  const void* x;           // [B, D] S
  const void* v;           // [B, D] S, before the kick
  const void* v_out;       // [B, D] S, after the kick
  const void* force;       // [B, D] S
  ScaleArgs scale_v;       // S_v
  ScaleArgs scale_x;       // S_x
  const void* step;        // [D] A
  const void* next_step;   // [D] A, or null
  const void* drift_step;  // [D] A
  ClipArgs force_clip;
  ClipArgs drift_clip;
  double lo, hi;
  void* dx;           // [B, D] S
  void* dv;           // [B, D] S
  void* dforce;       // [B, D] S
  void* dscale_v;     // [B, D] A; [1, D] A summed over the batch where it is shared; null without scale_v
  void* dscale_x;     // likewise
  void* dstep;        // [D] A, summed over the batch
  void* dnext_step;   // [D] A, summed over the batch; null without next_step
  void* ddrift_step;  // [D] A, summed over the batch
  void* workspace;
};

namespace cpu {

int64_t workspace_bytes(const GeneralizedLeapfrogKick& args);
int64_t workspace_bytes(const GeneralizedLeapfrogKickBackward& args);
int64_t workspace_bytes(const GeneralizedLeapfrogDrift& args);
int64_t workspace_bytes(const GeneralizedLeapfrogDriftBackward& args);
int64_t workspace_bytes(const GeneralizedLeapfrogKickDrift& args);
int64_t workspace_bytes(const GeneralizedLeapfrogKickDriftBackward& args);

void launch(const GeneralizedLeapfrogKick& args, Parallel parallel);
void launch(const GeneralizedLeapfrogKickBackward& args, Parallel parallel);
void launch(const GeneralizedLeapfrogDrift& args, Parallel parallel);
void launch(const GeneralizedLeapfrogDriftBackward& args, Parallel parallel);
void launch(const GeneralizedLeapfrogKickDrift& args, Parallel parallel);
void launch(const GeneralizedLeapfrogKickDriftBackward& args, Parallel parallel);

}  // namespace cpu

namespace cuda {

int64_t workspace_bytes(const GeneralizedLeapfrogKick& args);
int64_t workspace_bytes(const GeneralizedLeapfrogKickBackward& args);
int64_t workspace_bytes(const GeneralizedLeapfrogDrift& args);
int64_t workspace_bytes(const GeneralizedLeapfrogDriftBackward& args);
int64_t workspace_bytes(const GeneralizedLeapfrogKickDrift& args);
int64_t workspace_bytes(const GeneralizedLeapfrogKickDriftBackward& args);

int launch(const GeneralizedLeapfrogKick& args, void* stream);
int launch(const GeneralizedLeapfrogKickBackward& args, void* stream);
int launch(const GeneralizedLeapfrogDrift& args, void* stream);
int launch(const GeneralizedLeapfrogDriftBackward& args, void* stream);
int launch(const GeneralizedLeapfrogKickDrift& args, void* stream);
int launch(const GeneralizedLeapfrogKickDriftBackward& args, void* stream);

}  // namespace cuda
}  // namespace ade
