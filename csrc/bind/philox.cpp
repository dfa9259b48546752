// Normals from a key and a counter: schema and binding (launch/philox.h).
#include "bind/op.h"

namespace ade {
namespace bind {
namespace {

Tensor philox_normal(const Tensor& x, const Tensor& seed, int64_t step) {
  Op op("philox_normal", "x", x);
  constexpr int64_t kSteps = int64_t{1} << 32;
  if (step < 0 || step >= kSteps) op.fail("step must be from 0 to 2^32 - 1, got " + std::to_string(step));
  PhiloxNormal args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.cols = op.cols();
  args.seed = op.integers("seed", seed, "one entry", {1});
  args.step = step;
  const Tensor noise = op.new_states();
  args.noise = noise.data_ptr();
  op.run(args);
  return noise;
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("philox_normal", TORCH_BOX(&philox_normal));
}

}  // namespace
}  // namespace bind
}  // namespace ade

STABLE_TORCH_LIBRARY_FRAGMENT(ade_fast, m) {
  m.def("philox_normal(Tensor x, Tensor seed, int step) -> Tensor noise");
}

STABLE_TORCH_LIBRARY_IMPL(ade_fast, CPU, m) { ade::bind::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(ade_fast, CUDA, m) { ade::bind::implement(m); }
