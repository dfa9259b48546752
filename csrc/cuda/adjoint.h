// A step's vector-Jacobian product for a thread's columns of one row: the formulas of dynamics.h between the
// clips.
#pragma once

#include "cuda/block.h"
#include "cuda/columns.h"
#include "cuda/dynamics.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

template <class A>
struct RowClips {
  RowClip<A> force, momentum;
};

// What does not change from row to row: the steps.
template <class A, int N>
struct StepColumns {
  A step[N], next_step[N], drift_step[N];
};

template <int N, class A>
ADE_HD void fill(A (&out)[N], A value) {
#pragma unroll
  for (int j = 0; j < N; ++j) out[j] = value;
}

template <class Dynamics, class Parts, int N, class Args, class A>
ADE_HD void load_steps(StepColumns<A, N>& out, const Args* args, const Columns& at) {
  fill<N>(out.step, A(0));
  fill<N>(out.next_step, A(0));
  fill<N>(out.drift_step, A(0));
  if constexpr (Parts::kick) load_columns<N>(out.step, args->step, at);
  if constexpr (Parts::kick && Dynamics::scales) {
    if (args->next_step != nullptr) load_columns<N>(out.next_step, args->next_step, at);
  }
  if constexpr (Parts::drift) load_columns<N>(out.drift_step, args->drift_step, at);
}

template <class Dynamics, int N, class Args, class A>
ADE_HD void load_exp_scale(A (&out)[N], const Args*, const Scale<A>& scale, int64_t row, const Columns& at) {
  fill<N>(out, A(1));
  if constexpr (Dynamics::scales) {
    if (scale.data != nullptr) {
      load_columns<N>(out, scale.data + row * scale.row_stride, at);
#pragma unroll
      for (int j = 0; j < N; ++j) out[j] = std::exp(out[j]);
    }
  }
}

// The drift's half: dx, and the cotangents of the momentum before and behind its clip.
template <class A, int N>
struct DriftAdjoint {
  A u[N];
  DriftVjp<A> vjp[N];  // vjp.du is the clipped momentum's cotangent
};

template <class Dynamics, class Args, class A, int N>
ADE_HD void drift_adjoint(DriftAdjoint<A, N>& out, const Args* args, const StepColumns<A, N>& steps,
                          const RowClip<A>& clip_row, int64_t row, const Columns& at) {
  const int64_t offset = row * args->cols;
  A x[N], dx_out[N], exp_s[N];
  load_columns<N>(x, args->x + offset, at);
  load_columns<N>(out.u, args->u + offset, at);
  load_columns<N>(dx_out, args->dx_out + offset, at);
  load_exp_scale<Dynamics>(exp_s, args, args->scale_x, row, at);
#pragma unroll
  for (int j = 0; j < N; ++j)
    out.vjp[j] =
        Dynamics::drift_vjp(*args, dx_out[j], x[j], clip(args->momentum_clip, out.u[j], clip_row.scale),
                            exp_s[j], steps.drift_step[j]);
}

// The kick's half, given the whole cotangent dv_out of its momentum.
template <class A, int N>
struct KickAdjoint {
  A force[N];
  KickVjp<A> vjp[N];  // vjp.dforce is the clipped force's cotangent
};

template <class Dynamics, class Args, class A, int N>
ADE_HD void kick_adjoint(KickAdjoint<A, N>& out, const A (&dv_out)[N], const Args* args,
                         const StepColumns<A, N>& steps, const RowClip<A>& clip_row, int64_t row,
                         const Columns& at) {
  const int64_t offset = row * args->cols;
  A v[N], exp_s[N];
  load_columns<N>(out.force, args->force + offset, at);
  fill<N>(v, A(0));
  if constexpr (Dynamics::scales) {
    if (args->scale_v.data != nullptr) load_columns<N>(v, args->v + offset, at);  // only dS reads it
  }
  load_exp_scale<Dynamics>(exp_s, args, args->scale_v, row, at);
#pragma unroll
  for (int j = 0; j < N; ++j)
    out.vjp[j] =
        Dynamics::kick_vjp(*args, dv_out[j], v[j], clip(args->force_clip, out.force[j], clip_row.scale),
                           exp_s[j], steps.step[j], steps.next_step[j]);
}

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
