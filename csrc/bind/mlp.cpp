// MLP potentials: schemas and bindings of the whole unroll, and of the field on its own (launch/mlp.h).
#include <tuple>

#include "bind/mlp_network.h"

namespace ade {
namespace bind {
namespace {

// What annealing and a Gaussian beside f add to the dynamics.
struct Bridge {
  const Given &scale, &pull, &centre, &noise_v, &noise_x, &noise;

  void fill(Op& op, MlpDynamics& dynamics) const {
    const int64_t steps = dynamics.steps, rows = op.rows(), dim = op.cols();
    all_or_none(op, "pull and centre", {&pull, &centre});
    all_or_none(op, "noise, noise_v and noise_x", {&noise, &noise_v, &noise_x});
    dynamics.scale = rows_of(op, "scale", scale, "one entry per kick", {steps + 1});
    dynamics.pull = rows_of(op, "pull", pull, "one row per kick", {steps + 1, dim});
    dynamics.centre = rows_of(op, "centre", centre, "one row per kick", {steps + 1, dim});
    dynamics.noise_v = rows_of(op, "noise_v", noise_v, "one row per step", {steps, dim});
    dynamics.noise_x = rows_of(op, "noise_x", noise_x, "one row per step", {steps, dim});
    dynamics.noise = rows_of(op, "noise", noise, "one batch of states per step", {steps, rows, dim});
  }
};

// What only diagnostics want: allocated, or absent() and null.
Tensor figure_of(const Op& op, bool wanted, std::initializer_list<int64_t> shape, void*& pointer) {
  if (!wanted) return op.absent();
  const Tensor figure = op.new_of_shape(shape);
  pointer = figure.data_ptr();
  return figure;
}
void only_on_cpu(const Op& op, const char* argument, bool wanted) {
  if (wanted && op.on_cuda())
    op.fail(std::string(argument) + " must be left out, or false, on CUDA: it is of the CPU alone");
}

// The gradient of an argument that may be absent: allocated as it, or absent() and null.
Tensor gradient_of(const Op& op, const Given& tensor, void*& pointer) {
  if (!tensor) return op.absent();
  const Tensor gradient = tensor->dim() == 1 ? op.new_of_shape({tensor->size(0)})
                                             : op.new_of_shape({tensor->size(0), tensor->size(1)});
  pointer = gradient.data_ptr();
  return gradient;
}

MlpDynamics dynamics_of(Op& op, const Tensor& kick, const Tensor& drift, const Given& log_decay,
                        const Given& log_stretch, double damping, int64_t grad_clip, double grad_bound,
                        int64_t momentum_clip, double momentum_bound, double lo, double hi,
                        const Bridge& bridge) {
  const int64_t steps = drift.dim() > 0 ? drift.size(0) : 0, dim = op.cols();
  if (steps < 1) op.fail("drift must have one row per step and at least one");
  MlpDynamics dynamics{};
  dynamics.rows = op.rows();
  dynamics.steps = steps;
  dynamics.kick = op.of_shape("kick", kick, "one row per kick", {steps + 1, dim});
  dynamics.drift = op.of_shape("drift", drift, "one row per step", {steps, dim});
  dynamics.damping = op.finite("damping", damping);
  if (log_decay)
    dynamics.log_decay = op.of_shape("log_decay", *log_decay, "one row per kick", {steps + 1, dim});
  if (log_stretch) {
    dynamics.log_stretch = op.of_shape("log_stretch", *log_stretch, "one row per step", {steps, dim});
  }
  dynamics.grad_clip = op.clip("grad_clip", grad_clip, grad_bound);
  dynamics.momentum_clip = op.clip("momentum_clip", momentum_clip, momentum_bound);
  op.range(lo, hi);
  dynamics.lo = lo;
  dynamics.hi = hi;
  bridge.fill(op, dynamics);
  return dynamics;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
mlp_unroll(const Tensor& x0, const Tensor& v0, const Tensor& kick, const Tensor& drift,
           const Given& log_decay, const Given& log_stretch, const Tensors& weights, const Tensors& biases,
           int64_t activation, double parameter, int64_t precision, double damping, int64_t grad_clip,
           double grad_bound, int64_t momentum_clip, double momentum_bound, double lo, double hi,
           bool /* stopped: for the derivative */, bool keep_states, bool keep_bits, bool keep_products,
           const Given& scale, const Given& pull, const Given& centre, const Given& noise_v,
           const Given& noise_x, const Given& noise, bool want_figures, bool want_ends) {
  Op op("mlp_unroll", "x0", x0);
  const Network network(op, weights, biases, activation, parameter, precision);
  MlpUnroll args{};
  args.dtype = op.dtype();
  args.shape = network.shape;
  args.precision = network.precision;
  args.weights = network.weights;
  args.dynamics =
      dynamics_of(op, kick, drift, log_decay, log_stretch, damping, grad_clip, grad_bound, momentum_clip,
                  momentum_bound, lo, hi, {scale, pull, centre, noise_v, noise_x, noise});
  args.x0 = op.states("x0", x0);
  args.v0 = op.states("v0", v0);
  const int64_t rows = op.rows(), dim = op.cols(), steps = args.dynamics.steps;
  const Tensor value = figure_of(op, want_figures, {steps + 1, rows}, args.value);
  const Tensor gradient = figure_of(op, want_figures, {steps + 1, rows, dim}, args.gradient);
  only_on_cpu(op, "want_ends", want_ends);
  if (want_ends && scale) op.fail("want_ends must come without scale");
  const Tensor start_value = figure_of(op, want_ends, {rows}, args.ends.start_value);
  const Tensor end_value = figure_of(op, want_ends, {rows}, args.ends.value);
  const Tensor end_gradient = figure_of(op, want_ends, {rows, dim}, args.ends.gradient);
  const Tensor x_end = op.new_states(), v_end = op.new_states();
  const Tensor x = keep_states ? op.keep_of_shape({steps + 1, rows, dim}) : op.absent();
  const Tensor v = keep_states ? op.keep_of_shape({steps + 1, rows, dim}) : op.absent();
  const bool bits_wanted = keep_bits && piecewise_linear(network.shape.activation);
  const Tensor bits =
      op.keep_bytes(bits_wanted ? std::initializer_list<int64_t>{steps + 1, rows, network.bit_bytes}
                                : std::initializer_list<int64_t>{0});
  // On CUDA, computing them again is cheaper than fetching them.
  const bool products_wanted = keep_products && !op.on_cuda();
  const Tensor products =
      products_wanted ? op.keep_of_shape({steps + 1, product_columns(network.shape), rows}) : op.absent();
  const bool hidden_wanted = want_ends && products_wanted && piecewise_linear(network.shape.activation);
  const Tensor hidden = hidden_wanted ? op.keep_of_shape({hidden_columns(network.shape), rows}) : op.absent();
  args.ends.hidden = hidden_wanted ? hidden.data_ptr() : nullptr;
  args.x_end = x_end.data_ptr();
  args.v_end = v_end.data_ptr();
  args.x = keep_states ? x.data_ptr() : nullptr;
  args.v = keep_states ? v.data_ptr() : nullptr;
  args.bits = bits_wanted ? static_cast<uint8_t*>(bits.data_ptr()) : nullptr;
  args.products = products_wanted ? products.data_ptr() : nullptr;
  args.workers = workers();
  op.run(args);
  return {x_end, v_end, x, v, bits, products, value, gradient, start_value, end_value, end_gradient, hidden};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
           Tensors, Tensors>
mlp_unroll_backward(const Tensor& dx_end, const Tensor& dv_end, const Tensor& v0, const Tensor& kick,
                    const Tensor& drift, const Given& log_decay, const Given& log_stretch,
                    const Tensors& weights, const Tensors& biases, const Tensor& x, const Tensor& v,
                    const Tensor& bits, const Tensor& products, int64_t activation, double parameter,
                    int64_t precision, double damping, int64_t grad_clip, double grad_bound,
                    int64_t momentum_clip, double momentum_bound, double lo, double hi, bool stopped,
                    bool want_weights, const Given& dv_all, const Given& scale, const Given& pull,
                    const Given& centre, const Given& noise_v, const Given& noise_x, const Given& noise,
                    bool want_adjoint, const Given& dend_value, const Given& dend_gradient,
                    const Given& hidden, const Given& weight_factor) {
  Op op("mlp_unroll_backward", "dx_end", dx_end);
  const Network network(op, weights, biases, activation, parameter, precision);
  MlpUnrollBackward args{};
  args.dtype = op.dtype();
  args.shape = network.shape;
  args.precision = network.precision;
  args.weights = network.weights;
  args.dynamics =
      dynamics_of(op, kick, drift, log_decay, log_stretch, damping, grad_clip, grad_bound, momentum_clip,
                  momentum_bound, lo, hi, {scale, pull, centre, noise_v, noise_x, noise});
  const int64_t rows = op.rows(), dim = op.cols(), steps = args.dynamics.steps;
  args.v0 = op.states("v0", v0);
  args.x = op.of_shape("x", x, "every kept state", {steps + 1, rows, dim});
  args.v = op.of_shape("v", v, "every kept state", {steps + 1, rows, dim});
  if (bits.dim() == 3)
    args.bits = op.bytes("bits", bits, "every kept bit", {steps + 1, rows, network.bit_bytes});
  if (products.dim() == 3 && !op.on_cuda()) {
    if (bits.dim() != 3 && piecewise_linear(network.shape.activation))
      op.fail("products must come with bits");
    args.products = op.of_shape("products", products, "every kept product",
                                {steps + 1, product_columns(network.shape), rows});
  }
  if (stopped && want_weights) op.fail("a stopped gradient has no gradients of the weights");
  args.stopped = stopped;
  args.dx_end = op.states("dx_end", dx_end);
  args.dv_end = op.states("dv_end", dv_end);
  const Tensor adjoint = figure_of(op, want_adjoint, {steps + 1, 2, rows}, args.adjoint);
  args.dv_all = rows_of(op, "dv_all", dv_all, "every kept momentum", {steps + 1, rows, dim});
  only_on_cpu(op, "dend_value", dend_value.has_value());
  only_on_cpu(op, "dend_gradient", dend_gradient.has_value());
  if ((dend_value || dend_gradient) && scale) op.fail("dend_value and dend_gradient must come without scale");
  if (dend_value) args.dends.value = op.per_sample("dend_value", *dend_value);
  if (dend_gradient && !piecewise_linear(network.shape.activation))
    op.fail("dend_gradient must be absent where the potential is not piecewise linear");
  if (dend_gradient) args.dends.gradient = op.states("dend_gradient", *dend_gradient);
  if (hidden && hidden->dim() == 2) {
    args.dends.hidden =
        op.of_shape("hidden", *hidden, "every kept hidden value", {hidden_columns(network.shape), rows});
  }
  only_on_cpu(op, "weight_factor", weight_factor.has_value());
  if (weight_factor) args.weight_factor = op.per_sample("weight_factor", *weight_factor);
  const Tensor dx0 = op.new_states(), dv0 = op.new_states();
  const Tensor dkick = op.new_of_shape({steps + 1, dim}), ddrift = op.new_of_shape({steps, dim});
  const Tensor dlog_decay = gradient_of(op, log_decay, args.dlog_decay);
  const Tensor dlog_stretch = gradient_of(op, log_stretch, args.dlog_stretch);
  const Tensor dscale = gradient_of(op, scale, args.dscale);
  const Tensor dpull = gradient_of(op, pull, args.dpull), dcentre = gradient_of(op, centre, args.dcentre);
  const Tensor dnoise_v = gradient_of(op, noise_v, args.dnoise_v);
  const Tensor dnoise_x = gradient_of(op, noise_x, args.dnoise_x);
  const NetworkGradients gradients(op, weights, want_weights);
  args.dx0 = dx0.data_ptr();
  args.dv0 = dv0.data_ptr();
  args.dkick = dkick.data_ptr();
  args.ddrift = ddrift.data_ptr();
  args.dweights = gradients.pointers;
  args.workers = workers();
  op.run(args);
  return {dx0,   dv0,     dkick,    ddrift,   dlog_decay, dlog_stretch,     dscale,
          dpull, dcentre, dnoise_v, dnoise_x, adjoint,    gradients.weight, gradients.bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> mlp_field(const Tensor& x, const Tensors& weights,
                                                     const Tensors& biases, int64_t activation,
                                                     double parameter, int64_t precision, bool want_value,
                                                     bool want_grad, const Given& pull, const Given& centre,
                                                     double value_shift, bool keep) {
  Op op("mlp_field", "x", x);
  const Network network(op, weights, biases, activation, parameter, precision);
  MlpField args{};
  args.dtype = op.dtype();
  args.shape = network.shape;
  args.precision = network.precision;
  args.weights = network.weights;
  args.rows = op.rows();
  args.x = op.states("x", x);
  all_or_none(op, "pull and centre", {&pull, &centre});
  args.pull = op.row("pull", pull);
  args.centre = op.row("centre", centre);
  args.value_shift = op.finite("value_shift", value_shift);
  const Tensor value = want_value ? op.new_per_sample() : op.absent();
  const Tensor grad = want_grad ? op.new_states() : op.absent();
  args.value = want_value ? value.data_ptr() : nullptr;
  args.grad = want_grad ? grad.data_ptr() : nullptr;
  if (keep && !want_grad) op.fail("keep must come with want_grad");
  keep = keep && !op.on_cuda();  // where computing it again is cheaper
  const bool bits_wanted = keep && piecewise_linear(network.shape.activation);
  const Tensor bits = op.keep_bytes(bits_wanted ? std::initializer_list<int64_t>{op.rows(), network.bit_bytes}
                                                : std::initializer_list<int64_t>{0});
  const Tensor products = keep ? op.keep_of_shape({field_columns(network.shape), op.rows()}) : op.absent();
  args.bits = bits_wanted ? static_cast<uint8_t*>(bits.data_ptr()) : nullptr;
  args.products = keep ? products.data_ptr() : nullptr;
  args.workers = workers();
  op.run(args);
  return {value, grad, bits, products};
}

std::tuple<Tensor, Tensors, Tensors> mlp_field_backward(
    const Given& dvalue, const Given& dgrad, const Tensor& x, const Tensors& weights, const Tensors& biases,
    int64_t activation, double parameter, int64_t precision, bool want_weights, const Given& pull,
    const Given& centre, const Given& bits, const Given& products) {
  Op op("mlp_field_backward", "x", x);
  const Network network(op, weights, biases, activation, parameter, precision);
  MlpFieldBackward args{};
  args.dtype = op.dtype();
  args.shape = network.shape;
  args.precision = network.precision;
  args.weights = network.weights;
  args.rows = op.rows();
  args.x = op.states("x", x);
  all_or_none(op, "pull and centre", {&pull, &centre});
  args.pull = op.row("pull", pull);
  args.centre = op.row("centre", centre);
  const bool kept_bits = bits && bits->dim() == 2, kept_products = products && products->dim() == 2;
  if (kept_bits != (kept_products && piecewise_linear(network.shape.activation)))
    op.fail("products must come with bits, where there are bits");
  if (kept_bits) args.bits = op.bytes("bits", *bits, "every kept bit", {op.rows(), network.bit_bytes});
  if (kept_products) {
    args.products =
        op.of_shape("products", *products, "every kept product", {field_columns(network.shape), op.rows()});
  }
  if (dvalue) args.dvalue = op.per_sample("dvalue", *dvalue);
  if (dgrad) args.dgrad = op.states("dgrad", *dgrad);
  const Tensor dx = op.new_states();
  const NetworkGradients gradients(op, weights, want_weights);
  args.dx = dx.data_ptr();
  args.dweights = gradients.pointers;
  args.workers = workers();
  op.run(args);
  return {dx, gradients.weight, gradients.bias};
}

// Σ factor f(x) is linear in f, so that one evaluation has f and the gradients of the sum.
std::tuple<Tensor, Tensor, Tensors, Tensors> mlp_weighted_value(const Tensor& x, const Tensor& factor,
                                                                const Tensors& weights, const Tensors& biases,
                                                                int64_t activation, double parameter,
                                                                int64_t precision, const Given& pull,
                                                                const Given& centre) {
  Op op("mlp_weighted_value", "x", x);
  const Network network(op, weights, biases, activation, parameter, precision);
  MlpFieldBackward args{};
  args.dtype = op.dtype();
  args.shape = network.shape;
  args.weights = network.weights;
  args.rows = op.rows();
  args.x = op.states("x", x);
  all_or_none(op, "pull and centre", {&pull, &centre});
  args.pull = op.row("pull", pull);
  args.centre = op.row("centre", centre);
  args.dvalue = op.per_sample("factor", factor);
  const Tensor value = op.new_per_sample(), dx = op.new_states();
  const NetworkGradients gradients(op, weights, true);
  args.value = value.data_ptr();
  args.dx = dx.data_ptr();
  args.dweights = gradients.pointers;
  args.workers = workers();
  op.run_on_cpu(args);
  return {value, dx, gradients.weight, gradients.bias};
}

template <class Library>
void implement(Library& m) {
  m.impl("mlp_unroll", TORCH_BOX(&mlp_unroll));
  m.impl("mlp_unroll_backward", TORCH_BOX(&mlp_unroll_backward));
  m.impl("mlp_field", TORCH_BOX(&mlp_field));
  m.impl("mlp_field_backward", TORCH_BOX(&mlp_field_backward));
}

}  // namespace
}  // namespace bind
}  // namespace ade

STABLE_TORCH_LIBRARY_FRAGMENT(ade_fast, m) {
  m.def(
      "mlp_unroll(Tensor x0, Tensor v0, Tensor kick, Tensor drift, Tensor? log_decay, Tensor? log_stretch, "
      "Tensor[] weights, Tensor[] biases, int activation, float parameter, int precision, float damping, int "
      "grad_clip, "
      "float grad_bound, int momentum_clip, float momentum_bound, float lo, float hi, bool stopped, "
      "bool keep_states, bool keep_bits, bool keep_products, Tensor? scale=None, Tensor? pull=None, "
      "Tensor? centre=None, Tensor? noise_v=None, Tensor? noise_x=None, Tensor? noise=None, "
      "bool want_figures=False, bool want_ends=False) "
      "-> (Tensor x_end, Tensor v_end, Tensor x, Tensor v, Tensor bits, Tensor products, Tensor value, "
      "Tensor gradient, Tensor start_value, Tensor end_value, Tensor end_gradient, Tensor hidden)");
  m.def(
      "mlp_unroll_backward(Tensor dx_end, Tensor dv_end, Tensor v0, Tensor kick, Tensor drift, "
      "Tensor? log_decay, Tensor? log_stretch, Tensor[] weights, Tensor[] biases, Tensor x, Tensor v, "
      "Tensor bits, Tensor products, int activation, float parameter, int precision, float damping, int "
      "grad_clip, float "
      "grad_bound, "
      "int momentum_clip, float momentum_bound, float lo, float hi, bool stopped, bool want_weights, "
      "Tensor? dv_all=None, Tensor? scale=None, Tensor? pull=None, Tensor? centre=None, "
      "Tensor? noise_v=None, Tensor? noise_x=None, Tensor? noise=None, bool want_adjoint=False, "
      "Tensor? dend_value=None, Tensor? dend_gradient=None, Tensor? hidden=None, "
      "Tensor? weight_factor=None) "
      "-> (Tensor dx0, Tensor dv0, Tensor dkick, Tensor ddrift, Tensor dlog_decay, Tensor dlog_stretch, "
      "Tensor dscale, Tensor dpull, Tensor dcentre, Tensor dnoise_v, Tensor dnoise_x, Tensor adjoint, "
      "Tensor[] dweights, Tensor[] dbiases)");
  m.def(
      "mlp_field(Tensor x, Tensor[] weights, Tensor[] biases, int activation, float parameter, int "
      "precision, "
      "bool want_value, bool want_grad, Tensor? pull=None, Tensor? centre=None, float value_shift=0.0, "
      "bool keep=False) -> (Tensor value, Tensor grad, Tensor bits, Tensor products)");
  m.def(
      "mlp_field_backward(Tensor? dvalue, Tensor? dgrad, Tensor x, Tensor[] weights, Tensor[] biases, "
      "int activation, float parameter, int precision, bool want_weights, Tensor? pull=None, "
      "Tensor? centre=None, Tensor? bits=None, Tensor? products=None) "
      "-> (Tensor dx, Tensor[] dweights, Tensor[] dbiases)");
  m.def(
      "mlp_weighted_value(Tensor x, Tensor factor, Tensor[] weights, Tensor[] biases, int activation, "
      "float parameter, int precision, Tensor? pull=None, Tensor? centre=None) "
      "-> (Tensor value, Tensor dx, Tensor[] dweights, Tensor[] dbiases)");
}

STABLE_TORCH_LIBRARY_IMPL(ade_fast, CPU, m) {
  ade::bind::implement(m);
  m.impl("mlp_weighted_value", TORCH_BOX(&ade::bind::mlp_weighted_value));
}
STABLE_TORCH_LIBRARY_IMPL(ade_fast, CUDA, m) { ade::bind::implement(m); }
