// Markov chains of MLP potentials, and the contrast of their ends and beginnings: schemas and binding
// (launch/mlp.h).
#include <cmath>
#include <tuple>
#include <type_traits>

#include "bind/mlp_network.h"

namespace ade {
namespace bind {
namespace {

using Ends = std::tuple<Tensor, Tensor>;
using Contrast = std::tuple<Tensor, Tensor, Tensor, Tensors, Tensors>;

template <class Outputs>
Outputs run_chain(const Tensor& x0, const Tensor& seed, const Tensor& kick, const Tensor& drift,
                  const Tensors& weights, const Tensors& biases, int64_t activation, double parameter,
                  int64_t precision, int64_t transitions, bool test, int64_t grad_clip, double grad_bound,
                  int64_t momentum_clip, double momentum_bound, double lo, double hi, const Given& noise_std,
                  const Given& pull, const Given& centre, const Given& normals, const Given& uniforms) {
  constexpr bool kContrast = std::is_same_v<Outputs, Contrast>;
  Op op(kContrast ? "mlp_contrast" : "mlp_chain", "x0", x0);
  const Network network(op, weights, biases, activation, parameter, precision);
  constexpr int64_t kTransitions = int64_t{1} << 32;
  if (transitions < 1 || transitions > kTransitions) {
    op.fail("transitions must be from 1 to 2^32, got " + std::to_string(transitions));
  }
  if (kContrast && op.rows() < 1) op.fail("x0 must have at least one row, got 0");
  const int64_t rows = op.rows(), dim = op.cols(), steps = drift.dim() > 0 ? drift.size(0) : 0;
  if (steps < 1) op.fail("drift must have one row per step and at least one");
  MlpChain args{};
  args.dtype = op.dtype();
  args.shape = network.shape;
  args.weights = network.weights;
  args.transitions = transitions;
  args.test = test;
  args.dynamics.rows = rows;
  args.dynamics.steps = steps;
  args.dynamics.kick = op.of_shape("kick", kick, "one row per kick", {steps + 1, dim});
  args.dynamics.drift = op.of_shape("drift", drift, "one row per step", {steps, dim});
  args.dynamics.damping = 1;
  args.dynamics.grad_clip = op.clip("grad_clip", grad_clip, grad_bound);
  args.dynamics.momentum_clip = op.clip("momentum_clip", momentum_clip, momentum_bound);
  op.range(lo, hi);
  args.dynamics.lo = lo;
  args.dynamics.hi = hi;
  all_or_none(op, "pull and centre", {&pull, &centre});
  args.dynamics.pull = op.row("pull", pull);
  args.dynamics.centre = op.row("centre", centre);
  args.noise_std = op.row("noise_std", noise_std);
  if (test && (noise_std || !(std::isinf(lo) && std::isinf(hi)))) {
    op.fail("test must come without noise_std, lo and hi: the proposals would not lead back");
  }
  args.x0 = op.states("x0", x0);
  args.seed = op.integers("seed", seed, "one entry", {1});
  if (normals.has_value() ? uniforms.has_value() != test : uniforms.has_value()) {
    op.fail("uniforms must come with normals and test, and normals with test only with uniforms");
  }
  args.normals =
      rows_of(op, "normals", normals, "one batch of states per transition", {transitions, rows, dim});
  args.uniforms = rows_of(op, "uniforms", uniforms, "one batch per transition", {transitions, rows});
  const Tensor x = op.new_states();
  const Tensor acceptance = test ? op.new_of_shape({transitions}) : op.absent();
  args.x = x.data_ptr();
  args.acceptance = test ? acceptance.data_ptr() : nullptr;
  args.workers = workers();
  if constexpr (kContrast) {
    const Tensor value = op.new_of_shape({2, rows});
    const NetworkGradients gradients(op, weights, true);
    args.value = value.data_ptr();
    args.dweights = gradients.pointers;
    op.run_on_cpu(args);
    return {x, acceptance, value, gradients.weight, gradients.bias};
  } else {
    op.run_on_cpu(args);
    return {x, acceptance};
  }
}

}  // namespace
}  // namespace bind
}  // namespace ade

#define ADE_CHAIN_ARGUMENTS                                                                                  \
  "(Tensor x0, Tensor seed, Tensor kick, Tensor drift, Tensor[] weights, Tensor[] biases, int activation, "  \
  "float parameter, int precision, int transitions, bool test, int grad_clip, float grad_bound, "            \
  "int momentum_clip, float momentum_bound, float lo, float hi, Tensor? noise_std=None, Tensor? pull=None, " \
  "Tensor? centre=None, Tensor? normals=None, Tensor? uniforms=None) "

STABLE_TORCH_LIBRARY_FRAGMENT(ade_fast, m) {
  m.def("mlp_chain" ADE_CHAIN_ARGUMENTS "-> (Tensor x, Tensor acceptance)");
  m.def("mlp_contrast" ADE_CHAIN_ARGUMENTS
        "-> (Tensor x, Tensor acceptance, Tensor value, Tensor[] dweights, Tensor[] dbiases)");
}

STABLE_TORCH_LIBRARY_IMPL(ade_fast, CPU, m) {
  m.impl("mlp_chain", TORCH_BOX(&ade::bind::run_chain<ade::bind::Ends>));
  m.impl("mlp_contrast", TORCH_BOX(&ade::bind::run_chain<ade::bind::Contrast>));
}
