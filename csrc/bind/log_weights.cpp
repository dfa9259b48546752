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

Tensor log_weights(const Tensor& value, const Tensor& energy, const Tensor& log_q, const Tensor& weight,
                   int64_t size) {
  Op op("log_weights", "value", value, 1);
  op.not_bfloat16("value");
  LogWeights args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.weight = op.number("weight", weight);
  args.size = static_cast<double>(size);
  args.value = op.per_sample("value", value);
  args.energy = op.per_sample("energy", energy);
  args.log_q = op.per_sample("log_q", log_q);
  const Tensor log_w = op.new_per_sample();
  args.log_w = log_w.data_ptr();
  op.run_on_cpu(args);
  return log_w;
}

std::tuple<Tensor, Tensor> log_weight_figures(const Tensor& log_w) {
  Op op("log_weight_figures", "log_w", log_w, 1);
  op.not_bfloat16("log_w");
  LogWeightFigures args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.log_w = op.per_sample("log_w", log_w);
  const Tensor log_mean = op.new_number(), ess = op.new_number();
  args.log_mean = log_mean.data_ptr();
  args.ess = ess.data_ptr();
  op.run_on_cpu(args);
  return {log_mean, ess};
}

std::tuple<Tensor, Tensor, Tensor> renyi_bound(const Tensor& log_w, const std::optional<Tensor>& log_b,
                                               const Tensor& power, double share) {
  Op op("renyi_bound", "log_w", log_w, 1);
  op.not_bfloat16("log_w");
  RenyiBound args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.power = op.number("power", power);
  if (log_b.has_value() ? !(share > 0 && share < 1) : share != 0)
    op.fail("share must be between 0 and 1 with log_b, and 0 without, got " + std::to_string(share));
  args.share = share;
  args.log_w = op.per_sample("log_w", log_w);
  if (log_b) {
    args.others = log_b->dim() == 1 ? log_b->size(0) : 0;
    args.log_b = op.of_shape("log_b", *log_b, "one entry per sample of the base", {args.others});
  }
  const Tensor bound = op.new_number(), dlog_w = op.new_per_sample(), dlog_b = op.new_of_shape({args.others});
  args.bound = bound.data_ptr();
  args.dlog_w = dlog_w.data_ptr();
  args.dlog_b = dlog_b.data_ptr();
  op.run_on_cpu(args);
  return {bound, dlog_w, dlog_b};
}

Tensor tempered_power(const Tensor& log_w, int64_t levels, double min_ess, double most) {
  Op op("tempered_power", "log_w", log_w, 1);
  op.not_bfloat16("log_w");
  if (levels < 1) op.fail("levels must be at least 1, got " + std::to_string(levels));
  TemperedPower args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.levels = levels;
  args.min_ess = op.finite("min_ess", min_ess);
  args.most = op.finite("most", most);
  args.log_w = op.per_sample("log_w", log_w);
  const Tensor power = op.new_number();
  args.power = power.data_ptr();
  op.run_on_cpu(args);
  return power;
}

}  // namespace
}  // namespace bind
}  // namespace ade

STABLE_TORCH_LIBRARY_FRAGMENT(ade_fast, m) {
  m.def("normal_log_density(Tensor noise) -> Tensor log_q");
  m.def("log_weights(Tensor value, Tensor energy, Tensor log_q, Tensor weight, int size) -> Tensor log_w");
  m.def(
      "renyi_bound(Tensor log_w, Tensor? log_b, Tensor power, float share) -> (Tensor bound, Tensor dlog_w, "
      "Tensor dlog_b)");
  m.def("tempered_power(Tensor log_w, int levels, float min_ess, float most) -> Tensor power");
  m.def("log_weight_figures(Tensor log_w) -> (Tensor log_mean, Tensor ess)");
}

STABLE_TORCH_LIBRARY_IMPL(ade_fast, CPU, m) {
  m.impl("normal_log_density", TORCH_BOX(&ade::bind::normal_log_density));
  m.impl("log_weights", TORCH_BOX(&ade::bind::log_weights));
  m.impl("renyi_bound", TORCH_BOX(&ade::bind::renyi_bound));
  m.impl("tempered_power", TORCH_BOX(&ade::bind::tempered_power));
  m.impl("log_weight_figures", TORCH_BOX(&ade::bind::log_weight_figures));
}
