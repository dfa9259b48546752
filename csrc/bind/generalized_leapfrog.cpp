// Generalized leapfrog: schemas and bindings of the ops (launch/generalized_leapfrog.h).
#include <tuple>

#include "bind/op.h"

namespace ade {
namespace bind {
namespace {

using OptionalTensor = std::optional<Tensor>;

// The data of an output that may be absent: the kernels take null for it.
void* data_or_null(const Tensor& tensor, bool present) { return present ? tensor.data_ptr() : nullptr; }

std::tuple<Tensor, Tensor> generalized_leapfrog_kick(const Tensor& v, const Tensor& force,
                                                     const OptionalTensor& scale, const Tensor& step,
                                                     const OptionalTensor& next_step, int64_t clip,
                                                     double bound) {
  Op op("generalized_leapfrog_kick", "v", v);
  GeneralizedLeapfrogKick args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.cols = op.cols();
  args.v = op.states("v", v);
  args.force = op.states("force", force);
  args.scale = op.scale("scale", scale);
  args.step = op.row("step", step);
  args.next_step = op.row("next_step", next_step);
  args.clip = op.clip("clip", clip, bound);
  const Tensor v_out = op.new_states(), log_det = op.new_per_sample();
  args.v_out = v_out.data_ptr();
  args.log_det = log_det.data_ptr();
  op.run(args);
  return {v_out, log_det};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> generalized_leapfrog_kick_backward(
    const Tensor& dv_out, const Tensor& dlog_det, const Tensor& v, const Tensor& force,
    const OptionalTensor& scale, const Tensor& step, const OptionalTensor& next_step, int64_t clip,
    double bound) {
  Op op("generalized_leapfrog_kick_backward", "dv_out", dv_out);
  GeneralizedLeapfrogKickBackward args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.cols = op.cols();
  args.dv_out = op.states("dv_out", dv_out);
  args.dlog_det = op.per_sample("dlog_det", dlog_det);
  args.v = op.states("v", v);
  args.force = op.states("force", force);
  args.scale = op.scale("scale", scale);
  args.step = op.row("step", step);
  args.next_step = op.row("next_step", next_step);
  args.clip = op.clip("clip", clip, bound);
  const bool merged = next_step.has_value();
  const Tensor dv = op.new_states(), dforce = op.new_states(), dscale = op.new_scale(scale),
               dstep = op.new_row();
  const Tensor dnext_step = merged ? op.new_row() : op.absent();
  args.dv = dv.data_ptr();
  args.dforce = dforce.data_ptr();
  args.dscale = data_or_null(dscale, scale.has_value());
  args.dstep = dstep.data_ptr();
  args.dnext_step = data_or_null(dnext_step, merged);
  op.run(args);
  return {dv, dforce, dscale, dstep, dnext_step};
}

std::tuple<Tensor, Tensor> generalized_leapfrog_drift(const Tensor& x, const Tensor& u,
                                                      const OptionalTensor& scale, const Tensor& step,
                                                      int64_t clip, double bound, double lo, double hi) {
  Op op("generalized_leapfrog_drift", "x", x);
  GeneralizedLeapfrogDrift args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.cols = op.cols();
  args.x = op.states("x", x);
  args.u = op.states("u", u);
  args.scale = op.scale("scale", scale);
  args.step = op.row("step", step);
  args.clip = op.clip("clip", clip, bound);
  op.range(lo, hi);
  args.lo = lo;
  args.hi = hi;
  const Tensor x_out = op.new_states(), log_det = op.new_per_sample();
  args.x_out = x_out.data_ptr();
  args.log_det = log_det.data_ptr();
  op.run(args);
  return {x_out, log_det};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> generalized_leapfrog_drift_backward(
    const Tensor& dx_out, const Tensor& dlog_det, const Tensor& x, const Tensor& u,
    const OptionalTensor& scale, const Tensor& step, int64_t clip, double bound, double lo, double hi) {
  Op op("generalized_leapfrog_drift_backward", "dx_out", dx_out);
  GeneralizedLeapfrogDriftBackward args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.cols = op.cols();
  args.dx_out = op.states("dx_out", dx_out);
  args.dlog_det = op.per_sample("dlog_det", dlog_det);
  args.x = op.states("x", x);
  args.u = op.states("u", u);
  args.scale = op.scale("scale", scale);
  args.step = op.row("step", step);
  args.clip = op.clip("clip", clip, bound);
  op.range(lo, hi);
  args.lo = lo;
  args.hi = hi;
  const Tensor dx = op.new_states(), du = op.new_states(), dscale = op.new_scale(scale), dstep = op.new_row();
  args.dx = dx.data_ptr();
  args.du = du.data_ptr();
  args.dscale = data_or_null(dscale, scale.has_value());
  args.dstep = dstep.data_ptr();
  op.run(args);
  return {dx, du, dscale, dstep};
}

std::tuple<Tensor, Tensor, Tensor> generalized_leapfrog_kick_drift(
    const Tensor& x, const Tensor& v, const Tensor& force, const OptionalTensor& scale_v,
    const OptionalTensor& scale_x, const Tensor& step, const OptionalTensor& next_step,
    const Tensor& drift_step, int64_t force_clip, double force_bound, int64_t drift_clip, double drift_bound,
    double lo, double hi) {
  Op op("generalized_leapfrog_kick_drift", "x", x);
  GeneralizedLeapfrogKickDrift args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.cols = op.cols();
  args.x = op.states("x", x);
  args.v = op.states("v", v);
  args.force = op.states("force", force);
  args.scale_v = op.scale("scale_v", scale_v);
  args.scale_x = op.scale("scale_x", scale_x);
  args.step = op.row("step", step);
  args.next_step = op.row("next_step", next_step);
  args.drift_step = op.row("drift_step", drift_step);
  args.force_clip = op.clip("force_clip", force_clip, force_bound);
  args.drift_clip = op.clip("drift_clip", drift_clip, drift_bound);
  op.range(lo, hi);
  args.lo = lo;
  args.hi = hi;
  const Tensor x_out = op.new_states(), v_out = op.new_states(), log_det = op.new_per_sample();
  args.x_out = x_out.data_ptr();
  args.v_out = v_out.data_ptr();
  args.log_det = log_det.data_ptr();
  op.run(args);
  return {x_out, v_out, log_det};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
generalized_leapfrog_kick_drift_backward(const Tensor& dx_out, const Tensor& dv_out, const Tensor& dlog_det,
                                         const Tensor& x, const Tensor& v, const Tensor& v_out,
                                         const Tensor& force, const OptionalTensor& scale_v,
                                         const OptionalTensor& scale_x, const Tensor& step,
                                         const OptionalTensor& next_step, const Tensor& drift_step,
                                         int64_t force_clip, double force_bound, int64_t drift_clip,
                                         double drift_bound, double lo, double hi) {
  Op op("generalized_leapfrog_kick_drift_backward", "dx_out", dx_out);
  GeneralizedLeapfrogKickDriftBackward args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.cols = op.cols();
  args.dx_out = op.states("dx_out", dx_out);
  args.dv_out = op.states("dv_out", dv_out);
  args.dlog_det = op.per_sample("dlog_det", dlog_det);
  args.x = op.states("x", x);
  args.v = op.states("v", v);
  args.v_out = op.states("v_out", v_out);
  args.force = op.states("force", force);
  args.scale_v = op.scale("scale_v", scale_v);
  args.scale_x = op.scale("scale_x", scale_x);
  args.step = op.row("step", step);
  args.next_step = op.row("next_step", next_step);
  args.drift_step = op.row("drift_step", drift_step);
  args.force_clip = op.clip("force_clip", force_clip, force_bound);
  args.drift_clip = op.clip("drift_clip", drift_clip, drift_bound);
  op.range(lo, hi);
  args.lo = lo;
  args.hi = hi;
  const bool merged = next_step.has_value();
  const Tensor dx = op.new_states(), dv = op.new_states(), dforce = op.new_states();
  const Tensor dscale_v = op.new_scale(scale_v), dscale_x = op.new_scale(scale_x);
  const Tensor dstep = op.new_row(), dnext_step = merged ? op.new_row() : op.absent(),
               ddrift_step = op.new_row();
  args.dx = dx.data_ptr();
  args.dv = dv.data_ptr();
  args.dforce = dforce.data_ptr();
  args.dscale_v = data_or_null(dscale_v, scale_v.has_value());
  args.dscale_x = data_or_null(dscale_x, scale_x.has_value());
  args.dstep = dstep.data_ptr();
  args.dnext_step = data_or_null(dnext_step, merged);
  args.ddrift_step = ddrift_step.data_ptr();
  op.run(args);
  return {dx, dv, dforce, dscale_v, dscale_x, dstep, dnext_step, ddrift_step};
}

// One implementation for every device: Op::run looks where the states are.
void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("generalized_leapfrog_kick", TORCH_BOX(&generalized_leapfrog_kick));
  m.impl("generalized_leapfrog_kick_backward", TORCH_BOX(&generalized_leapfrog_kick_backward));
  m.impl("generalized_leapfrog_drift", TORCH_BOX(&generalized_leapfrog_drift));
  m.impl("generalized_leapfrog_drift_backward", TORCH_BOX(&generalized_leapfrog_drift_backward));
  m.impl("generalized_leapfrog_kick_drift", TORCH_BOX(&generalized_leapfrog_kick_drift));
  m.impl("generalized_leapfrog_kick_drift_backward", TORCH_BOX(&generalized_leapfrog_kick_drift_backward));
}

}  // namespace
}  // namespace bind
}  // namespace ade

STABLE_TORCH_LIBRARY_FRAGMENT(ade_fast, m) {
  m.def(
      "generalized_leapfrog_kick(Tensor v, Tensor force, Tensor? scale, Tensor step, Tensor? next_step, int "
      "clip, "
      "float bound) -> (Tensor v_out, Tensor log_det)");
  m.def(
      "generalized_leapfrog_kick_backward(Tensor dv_out, Tensor dlog_det, Tensor v, Tensor force, Tensor? "
      "scale, "
      "Tensor step, Tensor? next_step, int clip, float bound) "
      "-> (Tensor dv, Tensor dforce, Tensor dscale, Tensor dstep, Tensor dnext_step)");
  m.def(
      "generalized_leapfrog_drift(Tensor x, Tensor u, Tensor? scale, Tensor step, int clip, float bound, "
      "float lo, "
      "float hi) -> (Tensor x_out, Tensor log_det)");
  m.def(
      "generalized_leapfrog_drift_backward(Tensor dx_out, Tensor dlog_det, Tensor x, Tensor u, Tensor? "
      "scale, "
      "Tensor step, int clip, float bound, float lo, float hi) "
      "-> (Tensor dx, Tensor du, Tensor dscale, Tensor dstep)");
  m.def(
      "generalized_leapfrog_kick_drift(Tensor x, Tensor v, Tensor force, Tensor? scale_v, Tensor? scale_x, "
      "Tensor step, Tensor? next_step, Tensor drift_step, int force_clip, float force_bound, int drift_clip, "
      "float drift_bound, float lo, float hi) -> (Tensor x_out, Tensor v_out, Tensor log_det)");
  m.def(
      "generalized_leapfrog_kick_drift_backward(Tensor dx_out, Tensor dv_out, Tensor dlog_det, Tensor x, "
      "Tensor v, "
      "Tensor v_out, Tensor force, Tensor? scale_v, Tensor? scale_x, Tensor step, Tensor? next_step, "
      "Tensor drift_step, int force_clip, float force_bound, int drift_clip, float drift_bound, float lo, "
      "float hi) "
      "-> (Tensor dx, Tensor dv, Tensor dforce, Tensor dscale_v, Tensor dscale_x, Tensor dstep, Tensor "
      "dnext_step, "
      "Tensor ddrift_step)");
}

STABLE_TORCH_LIBRARY_IMPL(ade_fast, CPU, m) { ade::bind::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(ade_fast, CUDA, m) { ade::bind::implement(m); }
