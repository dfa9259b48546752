// From the untyped arguments of launch/ to StepArgs, and which kernel each of them means.
#pragma once

#include "cuda/plan.h"
#include "launch/generalized_leapfrog.h"
#include "launch/leapfrog.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

// Assigns an untyped pointer to a typed one.
template <class T>
void set(const T*& to, const void* from) {
  to = static_cast<const T*>(from);
}
template <class T>
void set(T*& to, void* from) {
  to = static_cast<T*>(from);
}
template <class A>
void set(Clip<A>& to, const ClipArgs& from) {
  to = {from.mode, static_cast<A>(from.bound)};
}
template <class A>
void set(Scale<A>& to, const ScaleArgs& from) {
  to = {static_cast<const A*>(from.data), from.row_stride};
}
// A scale's cotangent goes to the rows where each sample has its own, to the sums where the batch shares one.
template <class A>
void set(A*& rows, A*& sum, const Scale<A>& scale, void* dscale) {
  rows = scale.per_sample() ? static_cast<A*>(dscale) : nullptr;
  sum = scale.data != nullptr && !scale.per_sample() ? static_cast<A*>(dscale) : nullptr;
}

template <class Storage, class Launch>
StepArgs<Storage> start(const Launch& from) {
  StepArgs<Storage> args = {};
  args.rows = from.rows;
  args.cols = from.cols;
  args.damping = 1;
  return args;
}
template <class Storage, class Launch>
void set_range(StepArgs<Storage>& args, const Launch& from) {
  args.lo = static_cast<acc_t<Storage>>(from.lo);
  args.hi = static_cast<acc_t<Storage>>(from.hi);
}

// Meaning<Launch>: the dynamics, the halves of the step, the direction, and fill(args, launch).
template <class Launch>
struct Meaning;

template <class Dynamics_, class Parts_, bool kBackward>
struct MeaningOf {
  using Dynamics = Dynamics_;
  using Parts = Parts_;
  static constexpr bool backward = kBackward;
};

template <>
struct Meaning<LeapfrogKick> : MeaningOf<Leapfrog, Kick, false> {
  template <class Args>
  static void fill(Args& to, const LeapfrogKick& from) {
    set(to.v, from.v);
    set(to.force, from.grad);
    set(to.step, from.step);
    to.damping = static_cast<typename Args::A>(from.damping);
    set(to.force_clip, from.grad_clip);
    set(to.v_out, from.v_out);
  }
};

template <>
struct Meaning<LeapfrogKickBackward> : MeaningOf<Leapfrog, Kick, true> {
  template <class Args>
  static void fill(Args& to, const LeapfrogKickBackward& from) {
    set(to.dv_out, from.dv_out);
    set(to.force, from.grad);
    set(to.step, from.step);
    to.damping = static_cast<typename Args::A>(from.damping);
    set(to.force_clip, from.grad_clip);
    set(to.dv, from.dv);
    set(to.dforce, from.dgrad);
    set(to.sums[kStepSum], from.dstep);
  }
};

template <>
struct Meaning<LeapfrogDrift> : MeaningOf<Leapfrog, Drift, false> {
  template <class Args>
  static void fill(Args& to, const LeapfrogDrift& from) {
    set(to.x, from.x);
    set(to.u, from.v);
    set(to.drift_step, from.step);
    set(to.momentum_clip, from.momentum_clip);
    set_range(to, from);
    set(to.x_out, from.x_out);
  }
};

template <>
struct Meaning<LeapfrogDriftBackward> : MeaningOf<Leapfrog, Drift, true> {
  template <class Args>
  static void fill(Args& to, const LeapfrogDriftBackward& from) {
    set(to.dx_out, from.dx_out);
    set(to.x, from.x);
    set(to.u, from.v);
    set(to.drift_step, from.step);
    set(to.momentum_clip, from.momentum_clip);
    set_range(to, from);
    set(to.dx, from.dx);
    set(to.du, from.dv);
    set(to.sums[kDriftStepSum], from.dstep);
  }
};

template <>
struct Meaning<LeapfrogKickDrift> : MeaningOf<Leapfrog, KickDrift, false> {
  template <class Args>
  static void fill(Args& to, const LeapfrogKickDrift& from) {
    set(to.x, from.x);
    set(to.v, from.v);
    set(to.force, from.grad);
    set(to.step, from.kick_step);
    set(to.drift_step, from.drift_step);
    to.damping = static_cast<typename Args::A>(from.damping);
    set(to.force_clip, from.grad_clip);
    set(to.momentum_clip, from.momentum_clip);
    set_range(to, from);
    set(to.x_out, from.x_out);
    set(to.v_out, from.v_out);
  }
};

template <>
struct Meaning<LeapfrogKickDriftBackward> : MeaningOf<Leapfrog, KickDrift, true> {
  template <class Args>
  static void fill(Args& to, const LeapfrogKickDriftBackward& from) {
    set(to.dx_out, from.dx_out);
    set(to.dv_out, from.dv_out);
    set(to.x, from.x);
    set(to.u, from.v_out);
    set(to.force, from.grad);
    set(to.step, from.kick_step);
    set(to.drift_step, from.drift_step);
    to.damping = static_cast<typename Args::A>(from.damping);
    set(to.force_clip, from.grad_clip);
    set(to.momentum_clip, from.momentum_clip);
    set_range(to, from);
    set(to.dx, from.dx);
    set(to.dv, from.dv);
    set(to.dforce, from.dgrad);
    set(to.sums[kStepSum], from.dkick_step);
    set(to.sums[kDriftStepSum], from.ddrift_step);
  }
};

template <>
struct Meaning<GeneralizedLeapfrogKick> : MeaningOf<GeneralizedLeapfrog, Kick, false> {
  template <class Args>
  static void fill(Args& to, const GeneralizedLeapfrogKick& from) {
    set(to.v, from.v);
    set(to.force, from.force);
    set(to.scale_v, from.scale);
    set(to.step, from.step);
    set(to.next_step, from.next_step);
    set(to.force_clip, from.clip);
    set(to.v_out, from.v_out);
    set(to.log_det, from.log_det);
  }
};

template <>
struct Meaning<GeneralizedLeapfrogKickBackward> : MeaningOf<GeneralizedLeapfrog, Kick, true> {
  template <class Args>
  static void fill(Args& to, const GeneralizedLeapfrogKickBackward& from) {
    set(to.dv_out, from.dv_out);
    set(to.dlog_det, from.dlog_det);
    set(to.v, from.v);
    set(to.force, from.force);
    set(to.scale_v, from.scale);
    set(to.step, from.step);
    set(to.next_step, from.next_step);
    set(to.force_clip, from.clip);
    set(to.dv, from.dv);
    set(to.dforce, from.dforce);
    set(to.dscale_v, to.sums[kScaleVSum], to.scale_v, from.dscale);
    set(to.sums[kStepSum], from.dstep);
    set(to.sums[kNextStepSum], from.dnext_step);
  }
};

template <>
struct Meaning<GeneralizedLeapfrogDrift> : MeaningOf<GeneralizedLeapfrog, Drift, false> {
  template <class Args>
  static void fill(Args& to, const GeneralizedLeapfrogDrift& from) {
    set(to.x, from.x);
    set(to.u, from.u);
    set(to.scale_x, from.scale);
    set(to.drift_step, from.step);
    set(to.momentum_clip, from.clip);
    set_range(to, from);
    set(to.x_out, from.x_out);
    set(to.log_det, from.log_det);
  }
};

template <>
struct Meaning<GeneralizedLeapfrogDriftBackward> : MeaningOf<GeneralizedLeapfrog, Drift, true> {
  template <class Args>
  static void fill(Args& to, const GeneralizedLeapfrogDriftBackward& from) {
    set(to.dx_out, from.dx_out);
    set(to.dlog_det, from.dlog_det);
    set(to.x, from.x);
    set(to.u, from.u);
    set(to.scale_x, from.scale);
    set(to.drift_step, from.step);
    set(to.momentum_clip, from.clip);
    set_range(to, from);
    set(to.dx, from.dx);
    set(to.du, from.du);
    set(to.dscale_x, to.sums[kScaleXSum], to.scale_x, from.dscale);
    set(to.sums[kDriftStepSum], from.dstep);
  }
};

template <>
struct Meaning<GeneralizedLeapfrogKickDrift> : MeaningOf<GeneralizedLeapfrog, KickDrift, false> {
  template <class Args>
  static void fill(Args& to, const GeneralizedLeapfrogKickDrift& from) {
    set(to.x, from.x);
    set(to.v, from.v);
    set(to.force, from.force);
    set(to.scale_v, from.scale_v);
    set(to.scale_x, from.scale_x);
    set(to.step, from.step);
    set(to.next_step, from.next_step);
    set(to.drift_step, from.drift_step);
    set(to.force_clip, from.force_clip);
    set(to.momentum_clip, from.drift_clip);
    set_range(to, from);
    set(to.x_out, from.x_out);
    set(to.v_out, from.v_out);
    set(to.log_det, from.log_det);
  }
};

template <>
struct Meaning<GeneralizedLeapfrogKickDriftBackward> : MeaningOf<GeneralizedLeapfrog, KickDrift, true> {
  template <class Args>
  static void fill(Args& to, const GeneralizedLeapfrogKickDriftBackward& from) {
    set(to.dx_out, from.dx_out);
    set(to.dv_out, from.dv_out);
    set(to.dlog_det, from.dlog_det);
    set(to.x, from.x);
    set(to.v, from.v);
    set(to.u, from.v_out);
    set(to.force, from.force);
    set(to.scale_v, from.scale_v);
    set(to.scale_x, from.scale_x);
    set(to.step, from.step);
    set(to.next_step, from.next_step);
    set(to.drift_step, from.drift_step);
    set(to.force_clip, from.force_clip);
    set(to.momentum_clip, from.drift_clip);
    set_range(to, from);
    set(to.dx, from.dx);
    set(to.dv, from.dv);
    set(to.dforce, from.dforce);
    set(to.dscale_v, to.sums[kScaleVSum], to.scale_v, from.dscale_v);
    set(to.dscale_x, to.sums[kScaleXSum], to.scale_x, from.dscale_x);
    set(to.sums[kStepSum], from.dstep);
    set(to.sums[kNextStepSum], from.dnext_step);
    set(to.sums[kDriftStepSum], from.ddrift_step);
  }
};

// visit(storage type's zero) for the storage type that `dtype` names.
template <class Visit>
auto with_storage(Dtype dtype, Visit visit) {
  return dtype == kFloat64 ? visit(double{}) : dtype == kBFloat16 ? visit(bf16{}) : visit(float{});
}

template <class Launch>
int64_t workspace_bytes(const Launch& from) {
  using M = Meaning<Launch>;
  if constexpr (M::backward) {
    return with_storage(from.dtype, [&](auto zero) {
      using Storage = decltype(zero);
      auto args = start<Storage>(from);
      M::fill(args, from);
      return plan_backward<StepBackward<Storage, typename M::Dynamics, typename M::Parts>>(args, nullptr);
    });
  }
  return 0;
}

template <class Backend, class Launch>
int launch(Backend& backend, const Launch& from) {
  using M = Meaning<Launch>;
  return with_storage(from.dtype, [&](auto zero) {
    auto args = start<decltype(zero)>(from);
    M::fill(args, from);
    if constexpr (M::backward)
      return run_backward<typename M::Dynamics, typename M::Parts>(backend, args, from.workspace);
    else
      return run_forward<typename M::Dynamics, typename M::Parts>(backend, args);
  });
}

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
