// Figures of an unroll: schema and binding (launch/figures.h).
#include "launch/figures.h"

#include <tuple>

#include "bind/op.h"

namespace ade {
namespace bind {
namespace {

using Given = std::optional<Tensor>;

// Momenta of all points; the first that is given says how long they are.
const void* momenta_of(Op& op, const char* argument, const Given& tensor, int64_t points, int64_t& length) {
  if (!tensor) return nullptr;
  if (length == 0 && tensor->dim() == 3) length = tensor->size(2);
  return op.of_shape(argument, *tensor, "one batch of momenta per point", {points, op.cols(), length});
}

std::tuple<Tensor, Tensor> unroll_figures(const Tensor& value, const Tensor& gradient, const Given& force,
                                          const Given& v, const Given& drifting, const Given& log_det,
                                          const Given& v0, const Given& step, double damping,
                                          int64_t grad_clip, double grad_bound, int64_t momentum_clip,
                                          double momentum_bound, bool conserves) {
  Op op("unroll_figures", "value", value);
  UnrollFigures args{};
  args.dtype = op.dtype();
  op.not_bfloat16("value");
  args.points = op.rows();
  args.rows = op.cols();
  args.cols = gradient.dim() == 3 ? gradient.size(2) : 0;
  args.drifts = drifting && drifting->dim() == 3 ? drifting->size(0) : 0;
  args.value = op.states("value", value);
  args.gradient = op.of_shape("gradient", gradient, "one batch of gradients per point",
                              {args.points, args.rows, args.cols});
  args.force = momenta_of(op, "force", force, args.points, args.momentum_cols);
  args.v = momenta_of(op, "v", v, args.points, args.momentum_cols);
  args.drifting = momenta_of(op, "drifting", drifting, args.drifts, args.momentum_cols);
  if (step.has_value() != v0.has_value()) op.fail("v0 and step must come together");
  if (step) {
    if (!v || !force) op.fail("step must come with v and force");
    args.v0 = op.of_shape("v0", *v0, "one batch of momenta", {args.rows, args.momentum_cols});
    const int64_t steps = step->dim() == 2 && step->size(0) == 1 ? 1 : args.points - 1;
    args.step = op.of_shape("step", *step, "one row per step, or one for all", {steps, args.momentum_cols});
    args.step_stride = steps == 1 ? 0 : args.momentum_cols;
  }
  args.damping = op.finite("damping", damping);
  if (log_det)
    args.log_det =
        op.of_shape("log_det", *log_det, "one number per sample and point", {args.points, args.rows});
  args.grad_clip = op.clip("grad_clip", grad_clip, grad_bound);
  args.momentum_clip = op.clip("momentum_clip", momentum_clip, momentum_bound);
  args.conserves = conserves;
  const Tensor table = op.new_of_shape({kFigures, args.points});
  const Tensor momentum_clipped = op.new_of_shape({args.drifts});
  args.table = table.data_ptr();
  args.momentum_clipped = momentum_clipped.data_ptr();
  op.run_on_cpu(args);
  return {table, momentum_clipped};
}

Tensor adjoint_figures(const Tensor& norm, const Given& other) {
  Op op("adjoint_figures", "norm", norm);
  op.not_bfloat16("norm");
  AdjointFigures args{};
  args.dtype = op.dtype();
  args.points = op.rows();
  args.rows = op.cols();
  args.norm = op.states("norm", norm);
  if (other) args.other = op.states("other", *other);
  const Tensor table = op.new_of_shape({2, args.points});
  args.table = table.data_ptr();
  op.run_on_cpu(args);
  return table;
}

}  // namespace
}  // namespace bind
}  // namespace ade

STABLE_TORCH_LIBRARY_FRAGMENT(ade_fast, m) {
  m.def(
      "unroll_figures(Tensor value, Tensor gradient, Tensor? force, Tensor? v, Tensor? drifting, "
      "Tensor? log_det, Tensor? v0, Tensor? step, float damping, int grad_clip, float grad_bound, "
      "int momentum_clip, float momentum_bound, bool conserves) -> (Tensor table, Tensor momentum_clipped)");
  m.def("adjoint_figures(Tensor norm, Tensor? other) -> Tensor table");
}

STABLE_TORCH_LIBRARY_IMPL(ade_fast, CPU, m) {
  m.impl("unroll_figures", TORCH_BOX(&ade::bind::unroll_figures));
  m.impl("adjoint_figures", TORCH_BOX(&ade::bind::adjoint_figures));
}
