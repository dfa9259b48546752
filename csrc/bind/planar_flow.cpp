// The planar flow: schemas and bindings (launch/planar_flow.h).
#include <tuple>

#include "bind/op.h"

namespace ade {
namespace bind {
namespace {

// What both passes are given: shape, z and the layers.
template <class Args>
Args given(Op& op, const Tensor& z, const Tensor& u, const Tensor& w, const Tensor& b) {
  op.not_bfloat16("z");
  if (op.cols() < 1 || op.cols() > kPlanarFlowDims) {
    op.fail("z must have 1 to " + std::to_string(kPlanarFlowDims) + " columns, got " +
            std::to_string(op.cols()));
  }
  const int64_t layers = b.dim() == 1 ? b.size(0) : 0;
  if (layers < 1) op.fail("b must have one entry per layer and at least one");
  Args args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.cols = op.cols();
  args.layers = layers;
  args.z = op.states("z", z);
  args.u = op.of_shape("u", u, "one row per layer", {layers, op.cols()});
  args.w = op.of_shape("w", w, "one row per layer", {layers, op.cols()});
  args.b = op.of_shape("b", b, "one entry per layer", {layers});
  return args;
}

std::tuple<Tensor, Tensor, Tensor> planar_flow(const Tensor& z, const Tensor& u, const Tensor& w,
                                               const Tensor& b) {
  Op op("planar_flow", "z", z);
  auto args = given<PlanarFlow>(op, z, u, w, b);
  const Tensor x = op.new_states(), log_det = op.new_per_sample();
  const Tensor heights = op.keep_of_shape({args.layers, args.rows});
  args.x = x.data_ptr();
  args.log_det = log_det.data_ptr();
  args.heights = heights.data_ptr();
  op.run(args);
  return {x, log_det, heights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> planar_flow_backward(const Tensor& dx, const Tensor& dlog_det,
                                                                const Tensor& z, const Tensor& u,
                                                                const Tensor& w, const Tensor& b,
                                                                const Tensor& heights) {
  Op op("planar_flow_backward", "z", z);
  auto args = given<PlanarFlowBackward>(op, z, u, w, b);
  args.dx = op.states("dx", dx);
  args.dlog_det = op.per_sample("dlog_det", dlog_det);
  args.heights = op.of_shape("heights", heights, "one row per layer", {args.layers, args.rows});
  const Tensor dz = op.new_states(), du = op.new_of_shape({args.layers, args.cols});
  const Tensor dw = op.new_of_shape({args.layers, args.cols}), db = op.new_of_shape({args.layers});
  args.dz = dz.data_ptr();
  args.du = du.data_ptr();
  args.dw = dw.data_ptr();
  args.db = db.data_ptr();
  op.run(args);
  return {dz, du, dw, db};
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("planar_flow", TORCH_BOX(&planar_flow));
  m.impl("planar_flow_backward", TORCH_BOX(&planar_flow_backward));
}

}  // namespace
}  // namespace bind
}  // namespace ade

STABLE_TORCH_LIBRARY_FRAGMENT(ade_fast, m) {
  m.def("planar_flow(Tensor z, Tensor u, Tensor w, Tensor b) -> (Tensor x, Tensor log_det, Tensor heights)");
  m.def(
      "planar_flow_backward(Tensor dx, Tensor dlog_det, Tensor z, Tensor u, Tensor w, Tensor b, "
      "Tensor heights) -> (Tensor dz, Tensor du, Tensor dw, Tensor db)");
}

STABLE_TORCH_LIBRARY_IMPL(ade_fast, CPU, m) { ade::bind::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(ade_fast, CUDA, m) { ade::bind::implement(m); }
