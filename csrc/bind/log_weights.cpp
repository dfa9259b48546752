// Log-weights: schemas and bindings (launch/log_weights.h).
#include "launch/log_weights.h"

#include <tuple>

#include "bind/op.h"

namespace ade {
namespace bind {
namespace {

Tensor normal_log_density(const Tensor& noise) {
  Op op("normal_log_density", "noise", noise);
  op.not_bfloat16("noise");
  NormalLogDensity args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.cols = op.cols();
  args.noise = op.states("noise", noise);
  const Tensor log_q = op.new_per_sample();
  args.log_q = log_q.data_ptr();
  op.run_on_cpu(args);
  return log_q;
}

std::tuple<Tensor, Tensor> log_weight_figures(const Tensor& log_w) {
  Op op("log_weight_figures", "log_w", log_w, 1);
  op.not_bfloat16("log_w");
  LogWeightFigures args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.log_w = op.per_sample("log_w", log_w);
  const Tensor log_mean = op.new_number(), ess = op.new_double();
  args.log_mean = log_mean.data_ptr();
  args.ess = static_cast<double*>(ess.data_ptr());
  op.run_on_cpu(args);
  return {log_mean, ess};
}

}  // namespace
}  // namespace bind
}  // namespace ade

STABLE_TORCH_LIBRARY_FRAGMENT(ade_fast, m) {
  m.def("normal_log_density(Tensor noise) -> Tensor log_q");
  m.def("log_weight_figures(Tensor log_w) -> (Tensor log_mean, Tensor ess)");
}

STABLE_TORCH_LIBRARY_IMPL(ade_fast, CPU, m) {
  m.impl("normal_log_density", TORCH_BOX(&ade::bind::normal_log_density));
  m.impl("log_weight_figures", TORCH_BOX(&ade::bind::log_weight_figures));
}
