// ReLU-like kinks and the bits of their slopes: schemas and bindings (launch/kink.h).
#include "bind/op.h"

namespace ade {
namespace bind {
namespace {

int64_t bytes_of(const Op& op) { return (op.rows() * op.cols() + 7) / 8; }

double checked(const Op& op, double slope) {
  if (!(slope >= 0)) op.fail("slope must be 0 or more, got " + std::to_string(slope));
  return op.finite("slope", slope);
}

// An output that may be an input: written where it is.
void* written(Op& op, const char* argument, const Tensor& tensor) {
  if (op.states(argument, tensor) != tensor.data_ptr())
    op.fail(std::string(argument) + " must be contiguous");
  return tensor.data_ptr();
}

Tensor kink_bend(const Tensor& z, const Tensor& out, double slope) {
  Op op("kink_bend", "z", z);
  KinkBend args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.cols = op.cols();
  args.z = op.states("z", z);
  args.slope = checked(op, slope);
  args.out = written(op, "out", out);
  const Tensor bits = op.keep_bytes({bytes_of(op)});
  args.bits = static_cast<uint8_t*>(bits.data_ptr());
  op.run(args);
  return bits;
}

void kink_slopes(const Tensor& d, const Tensor& bits, const Tensor& out, double slope) {
  Op op("kink_slopes", "d", d);
  KinkSlopes args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.cols = op.cols();
  args.d = op.states("d", d);
  args.bits = op.bytes("bits", bits, "one bit per entry of d", {bytes_of(op)});
  args.slope = checked(op, slope);
  args.out = written(op, "out", out);
  op.run(args);
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("kink_bend", TORCH_BOX(&kink_bend));
  m.impl("kink_slopes", TORCH_BOX(&kink_slopes));
}

}  // namespace
}  // namespace bind
}  // namespace ade

STABLE_TORCH_LIBRARY_FRAGMENT(ade_fast, m) {
  m.def("kink_bend(Tensor z, Tensor(a!) out, float slope) -> Tensor bits");
  m.def("kink_slopes(Tensor d, Tensor bits, Tensor(a!) out, float slope) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(ade_fast, CPU, m) { ade::bind::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(ade_fast, CUDA, m) { ade::bind::implement(m); }
