// Leapfrog and damped leapfrog: schemas and bindings of the ops (launch/leapfrog.h).
#include <tuple>

#include "bind/op.h"

namespace ade {
namespace bind {
namespace {

Tensor leapfrog_kick(const Tensor& v, const Tensor& grad, const Tensor& step, double damping,
                     int64_t grad_clip, double grad_bound) {
  Op op("leapfrog_kick", "v", v);
  LeapfrogKick args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.cols = op.cols();
  args.v = op.states("v", v);
  args.grad = op.states("grad", grad);
  args.step = op.row("step", step);
  args.damping = op.finite("damping", damping);
  args.grad_clip = op.clip("grad_clip", grad_clip, grad_bound);
  const Tensor v_out = op.new_states();
  args.v_out = v_out.data_ptr();
  op.run(args);
  return v_out;
}

std::tuple<Tensor, Tensor, Tensor> leapfrog_kick_backward(const Tensor& dv_out, const Tensor& grad,
                                                          const Tensor& step, double damping,
                                                          int64_t grad_clip, double grad_bound) {
  Op op("leapfrog_kick_backward", "dv_out", dv_out);
  LeapfrogKickBackward args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.cols = op.cols();
  args.dv_out = op.states("dv_out", dv_out);
  args.grad = op.states("grad", grad);
  args.step = op.row("step", step);
  args.damping = op.finite("damping", damping);
  args.grad_clip = op.clip("grad_clip", grad_clip, grad_bound);
  const Tensor dv = op.new_states(), dgrad = op.new_states(), dstep = op.new_row();
  args.dv = dv.data_ptr();
  args.dgrad = dgrad.data_ptr();
  args.dstep = dstep.data_ptr();
  op.run(args);
  return {dv, dgrad, dstep};
}

Tensor leapfrog_drift(const Tensor& x, const Tensor& v, const Tensor& step, int64_t momentum_clip,
                      double momentum_bound, double lo, double hi) {
  Op op("leapfrog_drift", "x", x);
  LeapfrogDrift args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.cols = op.cols();
  args.x = op.states("x", x);
  args.v = op.states("v", v);
  args.step = op.row("step", step);
  args.momentum_clip = op.clip("momentum_clip", momentum_clip, momentum_bound);
  op.range(lo, hi);
  args.lo = lo;
  args.hi = hi;
  const Tensor x_out = op.new_states();
  args.x_out = x_out.data_ptr();
  op.run(args);
  return x_out;
}

std::tuple<Tensor, Tensor, Tensor> leapfrog_drift_backward(const Tensor& dx_out, const Tensor& x,
                                                           const Tensor& v, const Tensor& step,
                                                           int64_t momentum_clip, double momentum_bound,
                                                           double lo, double hi) {
  Op op("leapfrog_drift_backward", "dx_out", dx_out);
  LeapfrogDriftBackward args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.cols = op.cols();
  args.dx_out = op.states("dx_out", dx_out);
  args.x = op.states("x", x);
  args.v = op.states("v", v);
  args.step = op.row("step", step);
  args.momentum_clip = op.clip("momentum_clip", momentum_clip, momentum_bound);
  op.range(lo, hi);
  args.lo = lo;
  args.hi = hi;
  const Tensor dx = op.new_states(), dv = op.new_states(), dstep = op.new_row();
  args.dx = dx.data_ptr();
  args.dv = dv.data_ptr();
  args.dstep = dstep.data_ptr();
  op.run(args);
  return {dx, dv, dstep};
}

std::tuple<Tensor, Tensor> leapfrog_kick_drift(const Tensor& x, const Tensor& v, const Tensor& grad,
                                               const Tensor& kick_step, const Tensor& drift_step,
                                               double damping, int64_t grad_clip, double grad_bound,
                                               int64_t momentum_clip, double momentum_bound, double lo,
                                               double hi) {
  Op op("leapfrog_kick_drift", "x", x);
  LeapfrogKickDrift args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.cols = op.cols();
  args.x = op.states("x", x);
  args.v = op.states("v", v);
  args.grad = op.states("grad", grad);
  args.kick_step = op.row("kick_step", kick_step);
  args.drift_step = op.row("drift_step", drift_step);
  args.damping = op.finite("damping", damping);
  args.grad_clip = op.clip("grad_clip", grad_clip, grad_bound);
  args.momentum_clip = op.clip("momentum_clip", momentum_clip, momentum_bound);
  op.range(lo, hi);
  args.lo = lo;
  args.hi = hi;
  const Tensor x_out = op.new_states(), v_out = op.new_states();
  args.x_out = x_out.data_ptr();
  args.v_out = v_out.data_ptr();
  op.run(args);
  return {x_out, v_out};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> leapfrog_kick_drift_backward(
    const Tensor& dx_out, const Tensor& dv_out, const Tensor& x, const Tensor& v_out, const Tensor& grad,
    const Tensor& kick_step, const Tensor& drift_step, double damping, int64_t grad_clip, double grad_bound,
    int64_t momentum_clip, double momentum_bound, double lo, double hi) {
  Op op("leapfrog_kick_drift_backward", "dx_out", dx_out);
  LeapfrogKickDriftBackward args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.cols = op.cols();
  args.dx_out = op.states("dx_out", dx_out);
  args.dv_out = op.states("dv_out", dv_out);
  args.x = op.states("x", x);
  args.v_out = op.states("v_out", v_out);
  args.grad = op.states("grad", grad);
  args.kick_step = op.row("kick_step", kick_step);
  args.drift_step = op.row("drift_step", drift_step);
  args.damping = op.finite("damping", damping);
  args.grad_clip = op.clip("grad_clip", grad_clip, grad_bound);
  args.momentum_clip = op.clip("momentum_clip", momentum_clip, momentum_bound);
  op.range(lo, hi);
  args.lo = lo;
  args.hi = hi;
  const Tensor dx = op.new_states(), dv = op.new_states(), dgrad = op.new_states();
  const Tensor dkick_step = op.new_row(), ddrift_step = op.new_row();
  args.dx = dx.data_ptr();
  args.dv = dv.data_ptr();
  args.dgrad = dgrad.data_ptr();
  args.dkick_step = dkick_step.data_ptr();
  args.ddrift_step = ddrift_step.data_ptr();
  op.run(args);
  return {dx, dv, dgrad, dkick_step, ddrift_step};
}

// One implementation for every device: Op::run looks where the states are.
void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("leapfrog_kick", TORCH_BOX(&leapfrog_kick));
  m.impl("leapfrog_kick_backward", TORCH_BOX(&leapfrog_kick_backward));
  m.impl("leapfrog_drift", TORCH_BOX(&leapfrog_drift));
  m.impl("leapfrog_drift_backward", TORCH_BOX(&leapfrog_drift_backward));
  m.impl("leapfrog_kick_drift", TORCH_BOX(&leapfrog_kick_drift));
  m.impl("leapfrog_kick_drift_backward", TORCH_BOX(&leapfrog_kick_drift_backward));
}

}  // namespace
}  // namespace bind
}  // namespace ade

STABLE_TORCH_LIBRARY_FRAGMENT(ade_fast, m) {
  m.def(
      "leapfrog_kick(Tensor v, Tensor grad, Tensor step, float damping, int grad_clip, float grad_bound) "
      "-> (Tensor v_out)");
  m.def(
      "leapfrog_kick_backward(Tensor dv_out, Tensor grad, Tensor step, float damping, int grad_clip, float "
      "grad_bound) "
      "-> (Tensor dv, Tensor dgrad, Tensor dstep)");
  m.def(
      "leapfrog_drift(Tensor x, Tensor v, Tensor step, int momentum_clip, float momentum_bound, float lo, "
      "float hi) "
      "-> (Tensor x_out)");
  m.def(
      "leapfrog_drift_backward(Tensor dx_out, Tensor x, Tensor v, Tensor step, int momentum_clip, "
      "float momentum_bound, float lo, float hi) -> (Tensor dx, Tensor dv, Tensor dstep)");
  m.def(
      "leapfrog_kick_drift(Tensor x, Tensor v, Tensor grad, Tensor kick_step, Tensor drift_step, float "
      "damping, "
      "int grad_clip, float grad_bound, int momentum_clip, float momentum_bound, float lo, float hi) "
      "-> (Tensor x_out, Tensor v_out)");
  m.def(
      "leapfrog_kick_drift_backward(Tensor dx_out, Tensor dv_out, Tensor x, Tensor v_out, Tensor grad, "
      "Tensor kick_step, Tensor drift_step, float damping, int grad_clip, float grad_bound, int "
      "momentum_clip, "
      "float momentum_bound, float lo, float hi) "
      "-> (Tensor dx, Tensor dv, Tensor dgrad, Tensor dkick_step, Tensor ddrift_step)");
}

STABLE_TORCH_LIBRARY_IMPL(ade_fast, CPU, m) { ade::bind::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(ade_fast, CUDA, m) { ade::bind::implement(m); }
