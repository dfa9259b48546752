// The host-run CUDA kernels of MLP potentials (cuda/mlp/launch.h), for pytest.
#include "cuda/mlp/launch.h"

#include "host_run.h"
#include "reader.h"

namespace ade {
namespace base {
namespace kernels {

static int64_t field_bytes(const HostBackend& backend, const MlpField& field) {
  return mlp_workspace_bytes(backend, field);
}
static int launch_field(HostBackend& backend, const MlpField& field) { return launch_mlp(backend, field); }

}  // namespace kernels
}  // namespace base
}  // namespace ade

using namespace ade;

namespace {

void fill(Reader& read, MlpShape& shape) {
  std::vector<int64_t> widths;
  int64_t dim, activation;
  read("dim", dim)("widths", widths)("activation", activation)("parameter", shape.parameter);
  shape.dim = static_cast<int32_t>(dim);
  shape.layers = static_cast<int32_t>(widths.size());
  for (size_t l = 0; l < widths.size(); ++l) shape.width[l] = static_cast<int32_t>(widths[l]);
  shape.activation = static_cast<int32_t>(activation);
}
template <class Launch>
void fill_network(Reader& read, Launch& a) {
  fill(read, a.shape);
  int64_t precision;
  read("precision", precision)("weights", a.weights.weight)("biases", a.weights.bias);
  a.precision = static_cast<int32_t>(precision);
}
void fill(Reader& read, MlpDynamics& a) {
  read("rows", a.rows)("steps", a.steps)("kick", a.kick)("drift", a.drift)("damping", a.damping);
  read("log_decay", a.log_decay)("log_stretch", a.log_stretch)("grad_clip", a.grad_clip);
  read("momentum_clip", a.momentum_clip)("lo", a.lo)("hi", a.hi);
  read("scale", a.scale)("pull", a.pull)("centre", a.centre);
  read("noise", a.noise)("noise_v", a.noise_v)("noise_x", a.noise_x);
}
void fill(Reader& read, MlpWeightGradients& a) { read("dweights", a.weight)("dbiases", a.bias); }

void fill(Reader& read, MlpUnroll& a) {
  fill_network(read, a);
  fill(read, a.dynamics);
  read("x0", a.x0)("v0", a.v0)("x_end", a.x_end)("v_end", a.v_end)("x", a.x)("v", a.v)("bits", a.bits);
  read("value", a.value)("gradient", a.gradient);
}
void fill(Reader& read, MlpUnrollBackward& a) {
  fill_network(read, a);
  fill(read, a.dynamics);
  int64_t stopped;
  read("v0", a.v0)("x", a.x)("v", a.v)("bits", a.bits)("stopped", stopped)("dx_end", a.dx_end);
  read("dv_end", a.dv_end)("dv_all", a.dv_all)("dx0", a.dx0)("dv0", a.dv0)("dkick", a.dkick)("ddrift",
                                                                                             a.ddrift);
  read("dlog_decay", a.dlog_decay)("dlog_stretch", a.dlog_stretch);
  read("dscale", a.dscale)("dpull", a.dpull)("dcentre", a.dcentre);
  read("dnoise_v", a.dnoise_v)("dnoise_x", a.dnoise_x)("adjoint", a.adjoint);
  a.stopped = stopped != 0;
  fill(read, a.dweights);
}
void fill(Reader& read, MlpField& a) {
  fill_network(read, a);
  read("rows", a.rows)("x", a.x)("pull", a.pull)("centre", a.centre)("value_shift", a.value_shift);
  read("value", a.value)("grad", a.grad);
}
void fill(Reader& read, MlpFieldBackward& a) {
  fill_network(read, a);
  read("rows", a.rows)("x", a.x)("pull", a.pull)("centre", a.centre);
  read("dvalue", a.dvalue)("dgrad", a.dgrad)("dx", a.dx);
  fill(read, a.dweights);
}

template <class Launch>
int64_t bytes_of(const base::kernels::HostBackend& backend, const Launch& args) {
  if constexpr (std::is_same<Launch, MlpUnrollBackward>::value) {
    if (piecewise_linear(args.shape.activation)) return base::kernels::linear_backward_bytes(backend, args);
  }
  return base::kernels::mlp_workspace_bytes(backend, args);
}
template <class Launch>
void launch(base::kernels::HostBackend& backend, const Launch& args) {
  if constexpr (std::is_same<Launch, MlpUnrollBackward>::value) {
    if (piecewise_linear(args.shape.activation)) {
      base::kernels::launch_linear_backward(backend, args);
      return;
    }
  }
  base::kernels::launch_mlp(backend, args);
}

// As module.cpp's run; `memory` is what a block has of shared memory.
template <class Launch>
int64_t run(bool descending, int64_t memory, const py::kwargs& fields) {
  Launch args = {};
  Reader read(fields);
  fill(read, args);
  read.finish();
  base::kernels::HostBackend backend;
  backend.order = descending ? base::kernels::WarpOrder::kDescending : base::kernels::WarpOrder::kAscending;
  backend.limit = memory;
  Workspace workspace(bytes_of(backend, args));
  args.workspace = workspace.data();
  launch(backend, args);
  if (!workspace.intact()) throw std::runtime_error("a kernel wrote beyond its workspace");
  if (!backend.intact) throw std::runtime_error("a kernel wrote beyond its shared memory");
  return backend.blocks_run;
}

template <class Launch>
void define(py::module_& m, const char* name) {
  m.def(name, &run<Launch>, py::arg("descending"), py::arg("memory"));
}

}  // namespace

void define_mlp(py::module_& m) {
  define<MlpUnroll>(m, "mlp_unroll");
  define<MlpUnrollBackward>(m, "mlp_unroll_backward");
  define<MlpField>(m, "mlp_field");
  define<MlpFieldBackward>(m, "mlp_field_backward");
}
