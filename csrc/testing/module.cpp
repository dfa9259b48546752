// ade_fast_testing: the step headers' formulas and the host-run CUDA kernels over numpy arrays, for pytest.
// Not part of the wheel. No torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "host_run.h"

namespace py = pybind11;
using namespace ade;

namespace {

// Fills a launch struct from Python's keyword arguments and remembers what it used.
class Reader {
 public:
  explicit Reader(const py::dict& fields) : fields_(fields) {}

  Reader& operator()(const char* name, const void*& pointer) {
    pointer = array(name);
    return *this;
  }
  Reader& operator()(const char* name, void*& pointer) {
    pointer = array(name);
    return *this;
  }
  Reader& operator()(const char* name, double& value) {
    value = take(name).cast<double>();
    return *this;
  }
  Reader& operator()(const char* name, int64_t& value) {
    value = take(name).cast<int64_t>();
    return *this;
  }
  Reader& operator()(const char* name, ClipArgs& clip) {
    const auto pair = take(name).cast<std::pair<int32_t, double>>();
    clip = {pair.first, pair.second};
    return *this;
  }
  // None, [1, D] (shared by the batch) or [B, D].
  Reader& operator()(const char* name, ScaleArgs& scale) {
    scale = {array(name), 0};
    if (scale.data != nullptr) {
      const auto shape = fields_[name].cast<py::array>();
      scale.row_stride = shape.shape(0) == 1 ? 0 : shape.shape(1);
    }
    return *this;
  }
  Reader& operator()(const char* name, Dtype& dtype) {
    const auto text = take(name).cast<std::string>();
    if (text != "float32" && text != "float64" && text != "bfloat16")
      throw std::invalid_argument("dtype " + text);
    dtype = text == "float32" ? kFloat32 : text == "float64" ? kFloat64 : kBFloat16;
    return *this;
  }
  void finish() const {
    if (used_ != fields_.size())
      throw std::invalid_argument("unknown argument among " + py::str(fields_).cast<std::string>());
  }

 private:
  py::object take(const char* name) {
    if (!fields_.contains(name)) throw std::invalid_argument(std::string("missing argument ") + name);
    ++used_;
    return fields_[name];
  }
  void* array(const char* name) {
    const py::object value = take(name);
    if (value.is_none()) return nullptr;
    const auto data = value.cast<py::array>();
    if (!(data.flags() & py::array::c_style))
      throw std::invalid_argument(std::string(name) + " is not contiguous");
    return const_cast<void*>(data.data());
  }

  py::dict fields_;
  size_t used_ = 0;
};

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

// Memory of `bytes` at a multiple of 64, filled with NaN, with a fence behind it.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : bytes_(bytes), storage_(bytes + 2 * kFence, char(0xff)) {
    start_ = storage_.data() + (kFence - reinterpret_cast<uintptr_t>(storage_.data()) % kFence);
    std::memset(start_ + bytes_, 0x5a, fence());
  }
  void* data() { return start_; }
  bool intact() const {
    for (int64_t i = 0; i < fence(); ++i)
      if (start_[bytes_ + i] != 0x5a) return false;
    return true;
  }

 private:
  static constexpr int64_t kFence = 64;
  int64_t fence() const { return storage_.data() + storage_.size() - (start_ + bytes_); }
  int64_t bytes_;
  std::vector<char> storage_;
  char* start_;
};

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
}
