// Rational-quadratic splines: schemas and bindings (launch/spline.h).
#include <tuple>

#include "bind/op.h"

namespace ade {
namespace bind {
namespace {

// What both passes are given.
template <class Args>
Args given(Op& op, const Tensor& x, const Tensor& widths, const Tensor& heights, const Tensor& slopes,
           double bound, double least, bool inverse) {
  op.not_bfloat16("x");
  const int64_t pieces = widths.dim() == 3 ? widths.size(2) : 0;
  if (pieces < 2 || pieces > kSplinePieces) {
    op.fail("widths must have the shape (B, D, K) with K from 2 to " + std::to_string(kSplinePieces));
  }
  if (!(bound > 0)) op.fail("bound must be positive, got " + std::to_string(bound));
  if (!(least > 0 && least < 1)) op.fail("least must be between 0 and 1, got " + std::to_string(least));
  Args args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.cols = op.cols();
  args.pieces = pieces;
  args.x = op.states("x", x);
  args.widths = op.of_shape("widths", widths, "K for each entry of x", {args.rows, args.cols, pieces});
  args.heights = op.of_shape("heights", heights, "K for each entry of x", {args.rows, args.cols, pieces});
  args.slopes =
      op.of_shape("slopes", slopes, "K - 1 for each entry of x", {args.rows, args.cols, pieces - 1});
  args.bound = op.finite("bound", bound);
  args.least = least;
  args.inverse = inverse;
  return args;
}

std::tuple<Tensor, Tensor> spline(const Tensor& x, const Tensor& widths, const Tensor& heights,
                                  const Tensor& slopes, double bound, double least, bool inverse) {
  Op op("rational_quadratic_spline", "x", x);
  auto args = given<RationalQuadraticSpline>(op, x, widths, heights, slopes, bound, least, inverse);
  const Tensor x_out = op.new_states(), log_slope = op.new_states();
  args.x_out = x_out.data_ptr();
  args.log_slope = log_slope.data_ptr();
  op.run(args);
  return {x_out, log_slope};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> spline_backward(const Tensor& dx_out, const Tensor& dlog_slope,
                                                           const Tensor& x, const Tensor& widths,
                                                           const Tensor& heights, const Tensor& slopes,
                                                           const Tensor& x_out, double bound, double least,
                                                           bool inverse) {
  Op op("rational_quadratic_spline_backward", "x", x);
  auto args = given<RationalQuadraticSplineBackward>(op, x, widths, heights, slopes, bound, least, inverse);
  args.dx_out = op.states("dx_out", dx_out);
  args.dlog_slope = op.states("dlog_slope", dlog_slope);
  args.x_out = op.states("x_out", x_out);
  const Tensor dx = op.new_states();
  const Tensor dwidths = op.new_of_shape({args.rows, args.cols, args.pieces});
  const Tensor dheights = op.new_of_shape({args.rows, args.cols, args.pieces});
  const Tensor dslopes = op.new_of_shape({args.rows, args.cols, args.pieces - 1});
  args.dx = dx.data_ptr();
  args.dwidths = dwidths.data_ptr();
  args.dheights = dheights.data_ptr();
  args.dslopes = dslopes.data_ptr();
  op.run(args);
  return {dx, dwidths, dheights, dslopes};
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("rational_quadratic_spline", TORCH_BOX(&spline));
  m.impl("rational_quadratic_spline_backward", TORCH_BOX(&spline_backward));
}

}  // namespace
}  // namespace bind
}  // namespace ade

STABLE_TORCH_LIBRARY_FRAGMENT(ade_fast, m) {
  m.def(
      "rational_quadratic_spline(Tensor x, Tensor widths, Tensor heights, Tensor slopes, float bound, "
      "float least, bool inverse) -> (Tensor x_out, Tensor log_slope)");
  m.def(
      "rational_quadratic_spline_backward(Tensor dx_out, Tensor dlog_slope, Tensor x, Tensor widths, "
      "Tensor heights, Tensor slopes, Tensor x_out, float bound, float least, bool inverse) "
      "-> (Tensor dx, Tensor dwidths, Tensor dheights, Tensor dslopes)");
}

STABLE_TORCH_LIBRARY_IMPL(ade_fast, CPU, m) { ade::bind::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(ade_fast, CUDA, m) { ade::bind::implement(m); }
