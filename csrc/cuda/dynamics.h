// What a step kernel knows of a dynamics: which formula of steps/ its kick and drift are, at run-time
// options.
#pragma once

#include "cuda/step_args.h"
#include "steps/damped_leapfrog.h"
#include "steps/generalized_leapfrog.h"
#include "steps/leapfrog.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

template <class A>
struct KickVjp {
  A dv, dforce, dscale, dstep, dnext_step;
};
template <class A>
struct DriftVjp {
  A dx, du, dscale, dstep;
};

// Which halves a step has. A step of both runs the drift on the momentum that the kick has just stored.
struct Kick {
  static constexpr bool kick = true, drift = false;
};
struct Drift {
  static constexpr bool kick = false, drift = true;
};
struct KickDrift {
  static constexpr bool kick = true, drift = true;
};

// Eq. (10); with damping != 1 the damped kick.
struct Leapfrog {
  static constexpr bool scales = false;

  template <class Args, class A>
  static ADE_HD A kick(const Args& args, A v, A force, A, A step, A) {
    return args.damping == A(1) ? leapfrog::kick(v, force, step)
                                : damped_leapfrog::kick(v, force, step, args.damping);
  }
  template <class Args, class A>
  static ADE_HD KickVjp<A> kick_vjp(const Args& args, A dv_out, A, A force, A, A step, A) {
    const auto vjp = args.damping == A(1) ? leapfrog::kick_vjp(dv_out, force, step)
                                          : damped_leapfrog::kick_vjp(dv_out, force, step, args.damping);
    return {vjp.dv, vjp.dforce, A(0), vjp.dk, A(0)};
  }
  template <class Args, class A>
  static ADE_HD A drift(const Args& args, A x, A u, A, A step) {
    return leapfrog::drift(x, u, step, args.lo, args.hi);
  }
  template <class Args, class A>
  static ADE_HD DriftVjp<A> drift_vjp(const Args& args, A dx_out, A x, A u, A, A step) {
    const auto vjp = leapfrog::drift_vjp(dx_out, x, u, step, args.lo, args.hi);
    return {vjp.dx, vjp.du, A(0), vjp.deta};
  }
};

// Eq. (13); with a next step the merged kick.
struct GeneralizedLeapfrog {
  static constexpr bool scales = true;

  template <class Args, class A>
  static ADE_HD A kick(const Args& args, A v, A force, A exp_s, A step, A next_step) {
    return args.next_step == nullptr ? generalized_leapfrog::half_kick(v, force, exp_s, step)
                                     : generalized_leapfrog::merged_kick(v, force, exp_s, step, next_step);
  }
  template <class Args, class A>
  static ADE_HD KickVjp<A> kick_vjp(const Args& args, A dv_out, A v, A force, A exp_s, A step, A next_step) {
    if (args.next_step == nullptr) {
      const auto vjp = generalized_leapfrog::half_kick_vjp(dv_out, v, force, exp_s, step);
      return {vjp.dv, vjp.dforce, vjp.ds, vjp.da, A(0)};
    }
    const auto vjp = generalized_leapfrog::merged_kick_vjp(dv_out, v, force, exp_s, step, next_step);
    return {vjp.dv, vjp.dforce, vjp.ds, vjp.da, vjp.db};
  }
  template <class Args, class A>
  static ADE_HD A drift(const Args& args, A x, A u, A exp_s, A step) {
    return generalized_leapfrog::drift(x, u, exp_s, step, args.lo, args.hi);
  }
  template <class Args, class A>
  static ADE_HD DriftVjp<A> drift_vjp(const Args& args, A dx_out, A x, A u, A exp_s, A step) {
    const auto vjp = generalized_leapfrog::drift_vjp(dx_out, x, u, exp_s, step, args.lo, args.hi);
    return {vjp.dx, vjp.du, vjp.ds, vjp.deta};
  }
};

// A row's part of its norm clip: the factor, and in the backward pass the radial part (common/clip.h).
template <class A>
struct RowClip {
  A scale, shrink;
};

template <class A>
ADE_HD A clip(const Clip<A>& clip, A u, A scale) {
  return clip.mode == kClipValue ? clamp(u, -clip.bound, clip.bound) : clip.mode == kClipNorm ? u * scale : u;
}
template <class A>
ADE_HD A clip_vjp(const Clip<A>& clip, A dy, A u, const RowClip<A>& row) {
  return clip.mode == kClipValue  ? clamp_vjp(dy, u, -clip.bound, clip.bound)
         : clip.mode == kClipNorm ? norm_clip_vjp(dy, u, row.scale, row.shrink)
                                  : dy;
}

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
