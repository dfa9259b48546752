// cpu/mlp, cpu/planar_flow.cpp: no launch writes beyond the workspace that it asked for, nor reads what was
// not written there. With the argument "threads", launches run on real threads: ThreadSanitizer's test of
// them.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "check.h"
#include "launch/cpu_isa.h"
#include "launch/mlp.h"
#include "launch/planar_flow.h"

using namespace ade;

namespace {

void serial(int64_t count, int64_t, void (*body)(const void*, int64_t, int64_t), const void* context) {
  for (int64_t i = 0; i < count; ++i) body(context, i, i + 1);  // each worker, as on a thread of its own
}

void threaded(int64_t count, int64_t, void (*body)(const void*, int64_t, int64_t), const void* context) {
  const int64_t parts = std::min<int64_t>(3, count);
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < parts; ++i) {
    threads.emplace_back([=] { body(context, i * count / parts, (i + 1) * count / parts); });
  }
  for (std::thread& thread : threads) thread.join();
}

cpu::Parallel parallel = serial;

// Memory of exactly so many bytes, aligned to 64, before bytes that must stay as they are; every byte is set,
// so that numbers which are read before they are written are NaN.
class Guarded {
 public:
  explicit Guarded(int64_t bytes) : bytes_(bytes) {
    data_ = static_cast<unsigned char*>(std::aligned_alloc(64, (bytes + kGuard + 63) / 64 * 64));
    std::memset(data_, 0xff, bytes + kGuard);
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() { std::free(data_); }
  void* data() { return data_; }
  bool intact() const {
    for (int64_t i = bytes_; i < bytes_ + kGuard; ++i) {
      if (data_[i] != 0xff) return false;
    }
    return true;
  }

 private:
  static constexpr int64_t kGuard = 1 << 16;
  int64_t bytes_;
  unsigned char* data_;
};

template <class T>
std::vector<T> numbers(int64_t count, double scale) {
  static uint32_t state = 1;
  std::vector<T> out(count);
  for (T& number : out) {
    state = state * 1664525 + 1013904223;
    number = static_cast<T>(scale * (state / 2147483648.0 - 1));
  }
  return out;
}
template <class T>
bool finite(const std::vector<T>& of) {
  for (const T number : of) {
    if (!std::isfinite(number)) return false;
  }
  return true;
}

template <class Args>
void run(Args& args) {
  Guarded workspace(cpu::workspace_bytes(args));
  args.workspace = workspace.data();
  cpu::launch(args, parallel);
  CHECK(workspace.intact());
}

// What an unroll can do without.
struct Extra {
  bool scale, gaussian, noise, momenta;
};

template <class T>
struct Case {
  MlpShape shape;
  int64_t rows;
  int32_t workers;
  std::vector<std::vector<T>> weight, bias, dweight, dbias;

  // Weights' gradients start as NaN: a launch writes all of them.
  MlpWeights weights() const {
    MlpWeights of{};
    for (int l = 0; l <= shape.layers; ++l) of.weight[l] = weight[l].data(), of.bias[l] = bias[l].data();
    return of;
  }
  MlpWeightGradients gradients() {
    MlpWeightGradients of{};
    dweight = weight, dbias = bias;
    for (int l = 0; l <= shape.layers; ++l) {
      for (T& number : dweight[l]) number = static_cast<T>(NAN);
      for (T& number : dbias[l]) number = static_cast<T>(NAN);
      of.weight[l] = dweight[l].data(), of.bias[l] = dbias[l].data();
    }
    return of;
  }
  bool finite_gradients() const {
    bool all = true;
    for (int l = 0; l <= shape.layers; ++l) all = all && finite(dweight[l]) && finite(dbias[l]);
    return all;
  }
  template <class Args>
  Args of() const {
    Args args{};
    args.dtype = sizeof(T) == 8 ? kFloat64 : kFloat32;
    args.shape = shape;
    args.weights = weights();
    args.workers = workers;
    return args;
  }

  void field(bool gaussian, bool kept) {
    const int64_t size = rows * shape.dim;
    const auto x = numbers<T>(size, 1), u = numbers<T>(size, 1), df = numbers<T>(rows, 1);
    const auto pull = numbers<T>(shape.dim, 1), centre = numbers<T>(shape.dim, 1);
    std::vector<T> value(rows, NAN), grad(size, NAN), dx(size, NAN);
    auto args = of<MlpField>();
    args.rows = rows;
    args.pull = gaussian ? pull.data() : nullptr;
    args.centre = gaussian ? centre.data() : nullptr;
    args.value_shift = gaussian ? 0.5 : 0;
    args.x = x.data();
    args.value = value.data();
    args.grad = grad.data();
    int64_t units = 0;
    for (int l = 0; l < shape.layers; ++l) units += shape.width[l];
    std::vector<uint8_t> bits(rows * units / 8, 0xff);
    std::vector<T> products(rows * field_columns(shape), NAN);
    args.bits = kept && piecewise_linear(shape.activation) ? bits.data() : nullptr;
    args.products = kept ? products.data() : nullptr;
    run(args);
    CHECK(finite(value) && finite(grad) && (!kept || finite(products)));
    for (const int which : {1, 2, 3}) {
      auto back = of<MlpFieldBackward>();
      back.rows = rows;
      back.pull = args.pull, back.centre = args.centre;
      back.x = x.data();
      back.bits = args.bits, back.products = args.products;
      back.dvalue = which & 1 ? df.data() : nullptr;
      back.dgrad = which & 2 ? u.data() : nullptr;
      back.dx = dx.data();
      back.dweights = gradients();
      run(back);
      CHECK(finite(dx) && finite_gradients());
    }
  }

  void unroll(bool keep_bits, bool keep_products, const Extra& extra) {
    const int64_t steps = 2, dim = shape.dim, size = rows * dim, drifts = steps * dim, kicks = drifts + dim;
    const auto x0 = numbers<T>(size, 1), v0 = numbers<T>(size, 1), dx_end = numbers<T>(size, 1),
               dv_end = numbers<T>(size, 1);
    const std::vector<T> kick(kicks, T(0.1)), drift(drifts, T(0.1));
    const auto scale = numbers<T>(steps + 1, 1), pull = numbers<T>(kicks, 1), centre = numbers<T>(kicks, 1),
               noise_v = numbers<T>(drifts, 1), noise_x = numbers<T>(drifts, 1),
               noise = numbers<T>(steps * size, 1), dv_all = numbers<T>((steps + 1) * size, 1);
    std::vector<T> x_end(size, NAN), v_end(size, NAN), x((steps + 1) * size, NAN), v((steps + 1) * size, NAN);
    int64_t units = 0;
    for (int l = 0; l < shape.layers; ++l) units += shape.width[l];
    std::vector<uint8_t> bits((steps + 1) * rows * units / 8, 0xff);
    std::vector<T> products((steps + 1) * rows * product_columns(shape), NAN);
    auto args = of<MlpUnroll>();
    args.dynamics.rows = rows;
    args.dynamics.steps = steps;
    args.dynamics.kick = kick.data();
    args.dynamics.drift = drift.data();
    args.dynamics.damping = 1;
    args.dynamics.scale = extra.scale ? scale.data() : nullptr;
    args.dynamics.pull = extra.gaussian ? pull.data() : nullptr;
    args.dynamics.centre = extra.gaussian ? centre.data() : nullptr;
    args.dynamics.noise = extra.noise ? noise.data() : nullptr;
    args.dynamics.noise_v = extra.noise ? noise_v.data() : nullptr;
    args.dynamics.noise_x = extra.noise ? noise_x.data() : nullptr;
    args.dynamics.lo = -INFINITY;
    args.dynamics.hi = INFINITY;
    args.x0 = x0.data(), args.v0 = v0.data(), args.x_end = x_end.data(), args.v_end = v_end.data();
    args.x = x.data(), args.v = v.data();
    args.bits = keep_bits ? bits.data() : nullptr;
    args.products = keep_products ? products.data() : nullptr;
    run(args);
    CHECK(finite(x_end) && finite(v_end) && finite(x) && finite(v));
    CHECK(!keep_products || finite(products));

    std::vector<T> dx0(size, NAN), dv0(size, NAN), dkick(kicks, NAN), ddrift(drifts, NAN),
        dscale(extra.scale ? steps + 1 : 0, NAN), dpull(extra.gaussian ? kicks : 0, NAN),
        dcentre(extra.gaussian ? kicks : 0, NAN), dnoise_v(extra.noise ? drifts : 0, NAN),
        dnoise_x(extra.noise ? drifts : 0, NAN);
    auto back = of<MlpUnrollBackward>();
    back.dynamics = args.dynamics;
    back.v0 = v0.data(), back.x = x.data(), back.v = v.data();
    back.bits = args.bits, back.products = args.products;
    back.dx_end = dx_end.data(), back.dv_end = dv_end.data();
    back.dv_all = extra.momenta ? dv_all.data() : nullptr;
    back.dx0 = dx0.data(), back.dv0 = dv0.data(), back.dkick = dkick.data(), back.ddrift = ddrift.data();
    back.dscale = extra.scale ? dscale.data() : nullptr;
    back.dpull = extra.gaussian ? dpull.data() : nullptr;
    back.dcentre = extra.gaussian ? dcentre.data() : nullptr;
    back.dnoise_v = extra.noise ? dnoise_v.data() : nullptr;
    back.dnoise_x = extra.noise ? dnoise_x.data() : nullptr;
    for (const bool stopped : {true, false}) {
      back.stopped = stopped;
      back.dweights = stopped ? MlpWeightGradients{} : gradients();
      run(back);
      CHECK(finite(dx0) && finite(dv0) && finite(dkick) && finite(ddrift));
      CHECK(finite(dscale) && finite(dpull) && finite(dcentre) && finite(dnoise_v) && finite(dnoise_x));
      CHECK(stopped || finite_gradients());
    }
  }
};

template <class T>
void check(int32_t activation, int dim, std::initializer_list<int> hidden, int64_t rows, int32_t workers) {
  Case<T> at{};
  at.shape.activation = activation;
  at.shape.parameter = activation == kLeakyRelu ? 0.2 : 0;
  at.shape.dim = dim;
  at.rows = rows;
  at.workers = workers;
  int in = dim;
  for (const int out : hidden) {
    at.shape.width[at.shape.layers++] = out;
    at.weight.push_back(numbers<T>(static_cast<int64_t>(in) * out, 0.3));
    at.bias.push_back(numbers<T>(out, 0.3));
    in = out;
  }
  at.weight.push_back(numbers<T>(in, 0.3));
  at.bias.push_back(numbers<T>(1, 0.3));
  const Extra bare{false, false, false, false}, all{true, true, true, true};
  for (const bool gaussian : {false, true}) at.field(gaussian, false);
  at.field(false, true);
  at.unroll(false, false, bare);
  if (piecewise_linear(activation)) at.unroll(true, false, bare);
  at.unroll(piecewise_linear(activation), true, bare);
  at.unroll(false, false, all);
  at.unroll(piecewise_linear(activation), true, all);
  at.unroll(false, false, {true, false, false, false});
  at.unroll(false, false, {false, true, false, false});
  at.unroll(false, false, {false, false, true, false});
}

template <class T>
void planar_flow(int64_t rows, int64_t dim, int64_t layers) {
  const int64_t size = rows * dim;
  const auto z = numbers<T>(size, 1), dx = numbers<T>(size, 1), dlog_det = numbers<T>(rows, 1);
  const auto u = numbers<T>(layers * dim, 1), w = numbers<T>(layers * dim, 1), b = numbers<T>(layers, 1);
  std::vector<T> x(size, NAN), log_det(rows, NAN), heights(layers * rows, NAN);
  PlanarFlow args{};
  args.dtype = sizeof(T) == 8 ? kFloat64 : kFloat32;
  args.rows = rows, args.cols = dim, args.layers = layers;
  args.z = z.data(), args.u = u.data(), args.w = w.data(), args.b = b.data();
  args.x = x.data(), args.log_det = log_det.data(), args.heights = heights.data();
  run(args);
  CHECK(finite(x) && finite(log_det) && finite(heights));

  std::vector<T> dz(size, NAN), du(layers * dim, NAN), dw(layers * dim, NAN), db(layers, NAN);
  PlanarFlowBackward back{};
  back.dtype = args.dtype;
  back.rows = rows, back.cols = dim, back.layers = layers;
  back.dx = dx.data(), back.dlog_det = dlog_det.data();
  back.z = args.z, back.u = args.u, back.w = args.w, back.b = args.b, back.heights = heights.data();
  back.dz = dz.data(), back.du = du.data(), back.dw = dw.data(), back.db = db.data();
  run(back);
  CHECK(finite(dz) && finite(du) && finite(dw) && finite(db));
}

}  // namespace

int main(int count, char** arguments) {
  const bool on_threads = count > 1 && std::strcmp(arguments[1], "threads") == 0;
  if (on_threads) parallel = threaded;
  for (const char* isa : {"base", "avx2", "avx512"}) {
    if (!cpu::select_isa(isa)) continue;
    for (const int64_t rows : {0, 1, 17, 1000}) {
      for (const int64_t dim : {1, 2, 7, kPlanarFlowDims}) {
        planar_flow<float>(rows, dim, 3);
        planar_flow<double>(rows, dim, 1);
      }
    }
    for (const int32_t activation : {kRelu, kLeakyRelu, kSilu}) {
      for (const int dim : {1, 2, 3, 5, 33}) {
        for (const int64_t rows : {1, 9, 70, 600}) {
          if (on_threads && rows != 70) continue;
          const int32_t workers = rows > 1 ? 3 : 1;
          check<float>(activation, dim, {32}, rows, workers);
          check<float>(activation, dim, {64, 32}, rows, workers);
          check<float>(activation, dim, {32, 96, 64}, rows, workers);
          check<float>(activation, dim, {64, 32, 32, 32}, rows, workers);
          check<double>(activation, dim, {96, 32, 64}, rows, workers);
        }
      }
    }
  }
  return failures;
}
