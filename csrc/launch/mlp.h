// MLP potentials: the whole unroll of a leapfrog-type dynamics and its whole backward pass, and the field's
// own value, gradient and vector-Jacobian products (potentials/mlp.h). Conventions: launch/clips.h.
#pragma once

#include "common/mlp_shape.h"
#include "launch/clips.h"

namespace ade {

// l = 1..L: W_l [n_l, n_{l-1}] and b_l [n_l] at index l - 1; w [1, n_L] and b [1] at index L. Row-major,
// contiguous.
struct MlpWeights {
  const void* weight[kMaxHiddenLayers + 1];
  const void* bias[kMaxHiddenLayers + 1];
};
struct MlpWeightGradients {  // all null: not wanted
  void* weight[kMaxHiddenLayers + 1];
  void* bias[kMaxHiddenLayers + 1];
};

// Every dynamics of this family is T + 1 kicks and T drifts, the half kick and the drift of
// steps/generalized_leapfrog.h:
//   v_t = v_{t-1} · decay_t + kick_t · clip(F(x_t)),   with v_{-1} = v0
//   x_{t+1} = clamp(x_t · stretch_t + drift_t · clip(v_t), lo, hi)
// Leapfrog: decay and stretch are 1. Damped leapfrog: decay is m. Generalized leapfrog with constant S: the
// kick (v e^S + a F) e^S + b F has decay e^{2S} (e^S at both ends) and kick a e^S + b; stretch is e^{S_x}.
//
// A Gaussian beside f, and annealing, make the force scale_t F(x_t) - pull_t (x_t - centre_t), of which the
// clip is taken (potentials/affine_force.h). Noise ξ_t is added to x_{t+1} within its range, noise_x_t ξ_t,
// and to v_{t+1} after its kick, noise_v_t ξ_t (common/noise.h).
struct MlpDynamics {
  int64_t rows, steps;      // B, T
  const void* kick;         // [T+1, D]
  const void* drift;        // [T, D]
  double damping;           // decay, where there is no log_decay
  const void* log_decay;    // [T+1, D], or null
  const void* log_stretch;  // [T, D], or null: stretch 1
  const void* scale;        // [T+1], or null: 1
  const void* pull;         // [T+1, D], or null: 0
  const void* centre;       // [T+1, D], with pull
  const void* noise;        // [T, B, D], or null: none
  const void* noise_v;      // [T, D], with noise
  const void* noise_x;      // [T, D], with noise
  ClipArgs grad_clip;
  ClipArgs momentum_clip;
  double lo, hi;

  // Whether the force differs from F.
  ADE_HD bool bridged() const { return scale != nullptr || pull != nullptr; }
};

// What the unroll's own evaluations know of its two ends; with a Gaussian, of f(x) - ½ Σ pull (x - centre)².
struct MlpEnds {
  void* start_value;  // [B] at x_0
  void* value;        // [B] at x_T
  void* gradient;     // [B, D] at x_T, before its clip
  void* hidden;       // [hidden_columns, B] h_l at x_T for the backward pass, beside its products; or null
};
// Their cotangents, of which the gradient's goes to the weights alone: x_T counts as a constant in it.
struct MlpEndCotangents {
  const void* value;     // [B], or null: 0
  const void* gradient;  // [B, D], or null: 0
  const void* hidden;    // [hidden_columns, B], or null: not kept
};

struct MlpUnroll {
  Dtype dtype;  // float32 or float64; on CUDA float32 alone
  MlpShape shape;
  int32_t precision;  // a MatmulPrecision: of CUDA alone
  MlpWeights weights;
  MlpDynamics dynamics;
  const void* x0;   // [B, D]
  const void* v0;   // [B, D]
  void* x_end;      // [B, D] x_T
  void* v_end;      // [B, D] v_T
  void* x;          // [T+1, B, D] x_0 .. x_T for the backward pass, or null: not wanted
  void* v;          // [T+1, B, D] v_0 .. v_T, each after its kick and its noise, with x
  uint8_t* bits;    // [T+1, B, Σ n_l / 8] of a piecewise-linear potential: z > 0, unit by unit; or null
  void* products;   // [T+1, product_columns, B], in an order of the kernels' own; or null. Of the CPU alone
  void* value;      // [T+1, B] f(x_t), for diagnostics; or null
  void* gradient;   // [T+1, B, D] F(x_t), with value
  MlpEnds ends;     // all null: not wanted. Of the CPU alone
  int32_t workers;  // at most so many threads will run; the results do not depend on it
  void* workspace;
};

struct MlpUnrollBackward {
  Dtype dtype;
  MlpShape shape;
  int32_t precision;  // a MatmulPrecision
  MlpWeights weights;
  MlpDynamics dynamics;
  const void* v0;        // [B, D]
  const void* x;         // [T+1, B, D]
  const void* v;         // [T+1, B, D]
  const uint8_t* bits;   // [T+1, B, Σ n_l / 8], or null: not kept
  const void* products;  // [T+1, product_columns, B], or null: not kept; with the bits, where there are bits
  bool stopped;          // the force is a constant: no second-order products; every dweights is null
  const void* dx_end;    // [B, D]
  const void* dv_end;    // [B, D]
  const void* dv_all;    // [T+1, B, D] of v, beside dv_end; or null: 0
  MlpEndCotangents dends;  // of the CPU alone
  // [B] > 0, of the CPU alone: the weights' gradients are those of cotangents so many times as large, row by
  // row; or null: 1.
  const void* weight_factor;
  void* dx0;           // [B, D]
  void* dv0;           // [B, D]
  void* dkick;         // [T+1, D], summed over the batch like all that follows
  void* ddrift;        // [T, D]
  void* dlog_decay;    // [T+1, D], null without log_decay
  void* dlog_stretch;  // [T, D], null without log_stretch
  void* dscale;        // [T+1], null without scale
  void* dpull;         // [T+1, D], null without pull
  void* dcentre;       // [T+1, D], null without pull
  void* dnoise_v;      // [T, D], null without noise
  void* dnoise_x;      // [T, D], null without noise
  void* adjoint;       // [T+1, 2, B] norms of the cotangents of x_t and of v_{t-1}; or null
  MlpWeightGradients dweights;
  int32_t workers;
  void* workspace;
};

// K transitions of a Markov chain of every sample, without derivatives: each draws v ~ N(0, noise_std²),
// takes L steps of the dynamics from where the last one ended, and with `test` is accepted where log u <
// f(x') - f(x) + ½ ‖v‖² - ½ ‖v'‖². F and f at a point are of its own evaluation, once. Of the CPU alone.
struct MlpChain {
  Dtype dtype;  // float32 or float64
  MlpShape shape;
  MlpWeights weights;
  MlpDynamics dynamics;  // of one transition; pull and centre are [1, D], every kick's, and there is no noise
  int64_t transitions;   // K, at least 1
  bool test;
  const void* x0;         // [B, D]
  const void* seed;       // [1] int64, the key of the normals and uniforms of transition k (common/philox.h)
  const void* normals;    // [K, B, D] in their place, or null
  const void* uniforms;   // [K, B], with normals and test
  const void* noise_std;  // [D], or null: 1
  void* x;                // [B, D], where the chains end
  void* acceptance;       // [K] the fraction of the samples that moved, with test; or null
  // Contrastive divergence: f where the chains begin and where they end, [2, B], and the gradient of Σ
  // (f(end)
  // - f(begin)) / B; or null. B is at least 1 then.
  void* value;
  MlpWeightGradients dweights;  // with value
  int32_t workers;
  void* workspace;
};

// With a pull, of f(x) - ½ Σ pull (x - centre)² instead (potentials/affine_force.h).
struct MlpField {
  Dtype dtype;
  MlpShape shape;
  int32_t precision;  // a MatmulPrecision
  MlpWeights weights;
  int64_t rows;
  const void* x;       // [B, D]
  const void* pull;    // [D], or null: 0
  const void* centre;  // [D], with pull
  double value_shift;  // added to every value
  void* value;         // [B], or null
  void* grad;          // [B, D], or null
  uint8_t* bits;       // with grad: [B, Σ n_l / 8] of a piecewise-linear potential; or null
  void*
      products;  // with grad: [field_columns, B], in an order of the kernels' own; or null. Of the CPU alone
  int32_t workers;
  void* workspace;
};

// The vector-Jacobian product of ⟨grad, dgrad⟩ + ⟨value, dvalue⟩.
struct MlpFieldBackward {
  Dtype dtype;
  MlpShape shape;
  int32_t precision;  // a MatmulPrecision
  MlpWeights weights;
  int64_t rows;
  const void* x;         // [B, D]
  const void* pull;      // [D], or null: 0
  const void* centre;    // [D], with pull
  const uint8_t* bits;   // [B, Σ n_l / 8], or null: not kept
  const void* products;  // [field_columns, B], or null: not kept; with the bits, where there are bits
  const void* dvalue;    // [B], or null: 0
  const void* dgrad;     // [B, D], or null: 0
  void* dx;              // [B, D]
  void* value;           // [B] f(x) beside them, for dvalue that was known before; or null. Of the CPU alone
  MlpWeightGradients dweights;
  int32_t workers;
  void* workspace;
};

namespace cpu {

int64_t workspace_bytes(const MlpUnroll& args);
int64_t workspace_bytes(const MlpUnrollBackward& args);
int64_t workspace_bytes(const MlpField& args);
int64_t workspace_bytes(const MlpFieldBackward& args);
int64_t workspace_bytes(const MlpChain& args);

void launch(const MlpUnroll& args, Parallel parallel);
void launch(const MlpUnrollBackward& args, Parallel parallel);
void launch(const MlpField& args, Parallel parallel);
void launch(const MlpFieldBackward& args, Parallel parallel);
void launch(const MlpChain& args, Parallel parallel);

}  // namespace cpu

namespace cuda {  // float32 alone

// Whether the current device can run these: it has bfloat16 tensor cores.
bool runs_mlp();

int64_t workspace_bytes(const MlpUnroll& args);
int64_t workspace_bytes(const MlpUnrollBackward& args);
int64_t workspace_bytes(const MlpField& args);
int64_t workspace_bytes(const MlpFieldBackward& args);

int launch(const MlpUnroll& args, void* stream);
int launch(const MlpUnrollBackward& args, void* stream);
int launch(const MlpField& args, void* stream);
int launch(const MlpFieldBackward& args, void* stream);

}  // namespace cuda
}  // namespace ade
