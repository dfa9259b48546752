// ade_fast_testing: the step headers' formulas and the host-run CUDA kernels over numpy arrays, for pytest.
// Not part of the wheel. No torch.
#include "cuda/kink.h"
#include "cuda/philox.h"
#include "cuda/planar_flow.h"
#include "cuda/spline.h"

#include <array>

#include "host_run.h"
#include "reader.h"

using namespace ade;

void define_mlp(py::module_& m);  // mlp.cpp

namespace {

template <class Launch>
Reader& shape(Reader& read, Launch& a) {
  return read("dtype", a.dtype)("rows", a.rows)("cols", a.cols);
}

void fill(Reader& read, LeapfrogKick& a) {
  shape(read, a)("v", a.v)("grad", a.grad)("step", a.step)("damping", a.damping)("grad_clip", a.grad_clip)(
      "v_out", a.v_out);
}
void fill(Reader& read, LeapfrogKickBackward& a) {
  shape(read, a)("dv_out", a.dv_out)("grad", a.grad)("step", a.step)("damping", a.damping)("grad_clip",
                                                                                           a.grad_clip);
  read("dv", a.dv)("dgrad", a.dgrad)("dstep", a.dstep);
}
void fill(Reader& read, LeapfrogDrift& a) {
  shape(read, a)("x", a.x)("v", a.v)("step", a.step)("momentum_clip", a.momentum_clip)("lo", a.lo)("hi",
                                                                                                   a.hi);
  read("x_out", a.x_out);
}
void fill(Reader& read, LeapfrogDriftBackward& a) {
  shape(read, a)("dx_out", a.dx_out)("x", a.x)("v", a.v)("step", a.step)("momentum_clip", a.momentum_clip);
  read("lo", a.lo)("hi", a.hi)("dx", a.dx)("dv", a.dv)("dstep", a.dstep);
}
void fill(Reader& read, LeapfrogKickDrift& a) {
  shape(read, a)("x", a.x)("v", a.v)("grad", a.grad)("kick_step", a.kick_step)("drift_step", a.drift_step);
  read("damping", a.damping)("grad_clip", a.grad_clip)("momentum_clip", a.momentum_clip)("lo", a.lo)("hi",
                                                                                                     a.hi);
  read("x_out", a.x_out)("v_out", a.v_out);
}
void fill(Reader& read, LeapfrogKickDriftBackward& a) {
  shape(read, a)("dx_out", a.dx_out)("dv_out", a.dv_out)("x", a.x)("v_out", a.v_out)("grad", a.grad);
  read("kick_step", a.kick_step)("drift_step", a.drift_step)("damping", a.damping)("grad_clip", a.grad_clip);
  read("momentum_clip", a.momentum_clip)("lo", a.lo)("hi", a.hi)("dx", a.dx)("dv", a.dv)("dgrad", a.dgrad);
  read("dkick_step", a.dkick_step)("ddrift_step", a.ddrift_step);
}
void fill(Reader& read, GeneralizedLeapfrogKick& a) {
  shape(read, a)("v", a.v)("force", a.force)("scale", a.scale)("step", a.step)("next_step", a.next_step);
  read("clip", a.clip)("v_out", a.v_out)("log_det", a.log_det);
}
void fill(Reader& read, GeneralizedLeapfrogKickBackward& a) {
  shape(read, a)("dv_out", a.dv_out)("dlog_det", a.dlog_det)("v", a.v)("force", a.force)("scale", a.scale);
  read("step", a.step)("next_step", a.next_step)("clip", a.clip)("dv", a.dv)("dforce", a.dforce);
  read("dscale", a.dscale)("dstep", a.dstep)("dnext_step", a.dnext_step);
}
void fill(Reader& read, GeneralizedLeapfrogDrift& a) {
  shape(read, a)("x", a.x)("u", a.u)("scale", a.scale)("step", a.step)("clip", a.clip)("lo", a.lo)("hi",
                                                                                                   a.hi);
  read("x_out", a.x_out)("log_det", a.log_det);
}
void fill(Reader& read, GeneralizedLeapfrogDriftBackward& a) {
  shape(read, a)("dx_out", a.dx_out)("dlog_det", a.dlog_det)("x", a.x)("u", a.u)("scale", a.scale)("step",
                                                                                                   a.step);
  read("clip", a.clip)("lo", a.lo)("hi", a.hi)("dx", a.dx)("du", a.du)("dscale", a.dscale)("dstep", a.dstep);
}
void fill(Reader& read, GeneralizedLeapfrogKickDrift& a) {
  shape(read, a)("x", a.x)("v", a.v)("force", a.force)("scale_v", a.scale_v)("scale_x", a.scale_x)("step",
                                                                                                   a.step);
  read("next_step", a.next_step)("drift_step", a.drift_step)("force_clip", a.force_clip)("drift_clip",
                                                                                         a.drift_clip);
  read("lo", a.lo)("hi", a.hi)("x_out", a.x_out)("v_out", a.v_out)("log_det", a.log_det);
}
void fill(Reader& read, GeneralizedLeapfrogKickDriftBackward& a) {
  shape(read, a)("dx_out", a.dx_out)("dv_out", a.dv_out)("dlog_det", a.dlog_det)("x", a.x)("v", a.v);
  read("v_out", a.v_out)("force", a.force)("scale_v", a.scale_v)("scale_x", a.scale_x)("step", a.step);
  read("next_step", a.next_step)("drift_step", a.drift_step)("force_clip", a.force_clip)("drift_clip",
                                                                                         a.drift_clip);
  read("lo", a.lo)("hi", a.hi)("dx", a.dx)("dv", a.dv)("dforce", a.dforce)("dscale_v", a.dscale_v);
  read("dscale_x", a.dscale_x)("dstep", a.dstep)("dnext_step", a.dnext_step)("ddrift_step", a.ddrift_step);
}
void fill(Reader& read, PlanarFlow& a) {
  shape(read, a)("layers", a.layers)("z", a.z)("u", a.u)("w", a.w)("b", a.b);
  read("x", a.x)("log_det", a.log_det)("heights", a.heights);
}
void fill(Reader& read, PlanarFlowBackward& a) {
  shape(read, a)("layers", a.layers)("dx", a.dx)("dlog_det", a.dlog_det)("z", a.z)("u", a.u)("w", a.w);
  read("b", a.b)("heights", a.heights)("dz", a.dz)("du", a.du)("dw", a.dw)("db", a.db);
}

void fill(Reader& read, RationalQuadraticSpline& a) {
  shape(read, a)("pieces", a.pieces)("x", a.x)("widths", a.widths)("heights", a.heights)("slopes", a.slopes);
  read("bound", a.bound)("least", a.least)("inverse", a.inverse)("x_out", a.x_out)("log_slope", a.log_slope);
}
void fill(Reader& read, RationalQuadraticSplineBackward& a) {
  shape(read, a)("pieces", a.pieces)("dx_out", a.dx_out)("dlog_slope", a.dlog_slope)("x", a.x);
  read("widths", a.widths)("heights", a.heights)("slopes", a.slopes)("x_out", a.x_out);
  read("bound", a.bound)("least", a.least)("inverse", a.inverse);
  read("dx", a.dx)("dwidths", a.dwidths)("dheights", a.dheights)("dslopes", a.dslopes);
}

void fill(Reader& read, KinkBend& a) {
  shape(read, a)("z", a.z)("slope", a.slope)("out", a.out)("bits", a.bits);
}
void fill(Reader& read, KinkSlopes& a) {
  shape(read, a)("d", a.d)("bits", a.bits)("slope", a.slope)("out", a.out);
}
void fill(Reader& read, PhiloxNormal& a) { shape(read, a)("seed", a.seed)("step", a.step)("noise", a.noise); }

// Runs the CUDA kernels of one op on the host, writing into the arrays given as outputs; returns the number
// of blocks.
template <class Launch>
int64_t run(bool descending, const py::kwargs& fields) {
  Launch args = {};
  Reader read(fields);
  fill(read, args);
  read.finish();
  Workspace workspace(base::kernels::workspace_bytes(args));
  args.workspace = workspace.data();
  base::kernels::HostBackend backend;
  backend.order = descending ? base::kernels::WarpOrder::kDescending : base::kernels::WarpOrder::kAscending;
  base::kernels::launch(backend, args);
  if (!workspace.intact()) throw std::runtime_error("a kernel wrote beyond its workspace");
  if (!backend.intact) throw std::runtime_error("a kernel wrote beyond its shared memory");
  return backend.blocks_run;
}

template <class Launch, class Backward>
void define(py::module_& m, const std::string& name) {
  m.def(name.c_str(), &run<Launch>, py::arg("descending"));
  m.def((name + "_backward").c_str(), &run<Backward>, py::arg("descending"));
}

void define_formulas(py::module_ m) {
  using namespace base;
  m.def("clamp", &clamp<double>);
  m.def("clamp_vjp", &clamp_vjp<double>);
  m.def("norm_clip_scale", &norm_clip_scale<double>);
  m.def("norm_clip_shrink", &norm_clip_shrink<double>);
  m.def("norm_clip_vjp", &norm_clip_vjp<double>);
  m.def("leapfrog_kick", &leapfrog::kick<double>);
  m.def("leapfrog_kick_vjp", [](double dv_out, double force, double k) {
    const auto r = leapfrog::kick_vjp(dv_out, force, k);
    return py::make_tuple(r.dv, r.dforce, r.dk);
  });
  m.def("leapfrog_drift", &leapfrog::drift<double>);
  m.def("leapfrog_drift_vjp", [](double dx_out, double x, double u, double eta, double lo, double hi) {
    const auto r = leapfrog::drift_vjp(dx_out, x, u, eta, lo, hi);
    return py::make_tuple(r.dx, r.du, r.deta);
  });
  m.def("damped_leapfrog_kick", &damped_leapfrog::kick<double>);
  m.def("damped_leapfrog_kick_vjp", [](double dv_out, double force, double k, double damping) {
    const auto r = damped_leapfrog::kick_vjp(dv_out, force, k, damping);
    return py::make_tuple(r.dv, r.dforce, r.dk);
  });
  m.def("generalized_leapfrog_half_kick", &generalized_leapfrog::half_kick<double>);
  m.def("generalized_leapfrog_half_kick_vjp",
        [](double dv_out, double v, double force, double exp_s, double a) {
          const auto r = generalized_leapfrog::half_kick_vjp(dv_out, v, force, exp_s, a);
          return py::make_tuple(r.dv, r.dforce, r.ds, r.da);
        });
  m.def("generalized_leapfrog_merged_kick", &generalized_leapfrog::merged_kick<double>);
  m.def("generalized_leapfrog_merged_kick_vjp",
        [](double dv_out, double v, double force, double exp_s, double a, double b) {
          const auto r = generalized_leapfrog::merged_kick_vjp(dv_out, v, force, exp_s, a, b);
          return py::make_tuple(r.dv, r.dforce, r.ds, r.da, r.db);
        });
  m.def("generalized_leapfrog_drift", &generalized_leapfrog::drift<double>);
  m.def("generalized_leapfrog_drift_vjp",
        [](double dx_out, double x, double u, double exp_s, double eta, double lo, double hi) {
          const auto r = generalized_leapfrog::drift_vjp(dx_out, x, u, exp_s, eta, lo, hi);
          return py::make_tuple(r.dx, r.du, r.ds, r.deta);
        });
  m.def("philox4x32", [](std::array<uint32_t, 4> counter, uint64_t key) {
    const auto words = philox::philox4x32({counter[0], counter[1], counter[2], counter[3]}, key);
    return py::make_tuple(words.x, words.y, words.z, words.w);
  });
  m.def("round_bfloat16", py::vectorize([](float a) { return Store<bf16>::from(a).bits; }));
  m.def("widen_bfloat16", py::vectorize([](uint16_t bits) { return load(bf16{bits}); }));
}

}  // namespace

PYBIND11_MODULE(ade_fast_testing, m) {
  m.doc() = "Step formulas (.formulas) and host-run CUDA kernels (.cuda) of ade_fast, for its tests.";
  define_formulas(
      m.def_submodule("formulas", "csrc/common and csrc/steps in float64, one element at a time."));
  auto cuda =
      m.def_submodule("cuda", "op(descending, **fields of the launch struct): outputs are written in place.");
  define<LeapfrogKick, LeapfrogKickBackward>(cuda, "leapfrog_kick");
  define<LeapfrogDrift, LeapfrogDriftBackward>(cuda, "leapfrog_drift");
  define<LeapfrogKickDrift, LeapfrogKickDriftBackward>(cuda, "leapfrog_kick_drift");
  define<GeneralizedLeapfrogKick, GeneralizedLeapfrogKickBackward>(cuda, "generalized_leapfrog_kick");
  define<GeneralizedLeapfrogDrift, GeneralizedLeapfrogDriftBackward>(cuda, "generalized_leapfrog_drift");
  define<GeneralizedLeapfrogKickDrift, GeneralizedLeapfrogKickDriftBackward>(
      cuda, "generalized_leapfrog_kick_drift");
  define<PlanarFlow, PlanarFlowBackward>(cuda, "planar_flow");
  define<RationalQuadraticSpline, RationalQuadraticSplineBackward>(cuda, "rational_quadratic_spline");
  cuda.def("kink_bend", &run<KinkBend>, py::arg("descending"));
  cuda.def("kink_slopes", &run<KinkSlopes>, py::arg("descending"));
  cuda.def("philox_normal", &run<PhiloxNormal>, py::arg("descending"));
  define_mlp(cuda);
}
