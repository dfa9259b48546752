// Leapfrog's kicks and drifts from its step sizes: schemas and bindings (launch/merged_steps.h).
#include "launch/merged_steps.h"

#include <tuple>

#include "bind/op.h"

namespace ade {
namespace bind {
namespace {

std::tuple<Tensor, Tensor> merged_steps(const Tensor& step, int64_t steps) {
  Op op("merged_steps", "step", step);
  op.not_bfloat16("step");
  if (steps < 1 || (op.rows() != 1 && op.rows() != steps)) {
    op.fail("step must have one row, or one for each of " + std::to_string(steps) + " steps, got " +
            std::to_string(op.rows()));
  }
  MergedSteps args{};
  args.dtype = op.dtype();
  args.steps = steps;
  args.rows = op.rows();
  args.cols = op.cols();
  args.step = op.states("step", step);
  const Tensor kick = op.new_of_shape({steps + 1, args.cols}), drift = op.new_of_shape({steps, args.cols});
  args.kick = kick.data_ptr();
  args.drift = drift.data_ptr();
  op.run_on_cpu(args);
  return {kick, drift};
}

Tensor merged_steps_backward(const Tensor& dkick, const std::optional<Tensor>& ddrift, bool per_step) {
  Op op("merged_steps_backward", "dkick", dkick);
  op.not_bfloat16("dkick");
  if (op.rows() < 2)
    op.fail("dkick must have a row for each point, at least 2, got " + std::to_string(op.rows()));
  MergedStepsBackward args{};
  args.dtype = op.dtype();
  args.steps = op.rows() - 1;
  args.rows = per_step ? args.steps : 1;
  args.cols = op.cols();
  args.dkick = op.states("dkick", dkick);
  if (ddrift) args.ddrift = op.of_shape("ddrift", *ddrift, "one row per step", {args.steps, args.cols});
  const Tensor dstep = op.new_of_shape({args.rows, args.cols});
  args.dstep = dstep.data_ptr();
  op.run_on_cpu(args);
  return dstep;
}

}  // namespace
}  // namespace bind
}  // namespace ade

STABLE_TORCH_LIBRARY_FRAGMENT(ade_fast, m) {
  m.def("merged_steps(Tensor step, int steps) -> (Tensor kick, Tensor drift)");
  m.def("merged_steps_backward(Tensor dkick, Tensor? ddrift, bool per_step) -> Tensor dstep");
}

STABLE_TORCH_LIBRARY_IMPL(ade_fast, CPU, m) {
  m.impl("merged_steps", TORCH_BOX(&ade::bind::merged_steps));
  m.impl("merged_steps_backward", TORCH_BOX(&ade::bind::merged_steps_backward));
}
