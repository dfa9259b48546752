// What an objective sums up: schemas and bindings (launch/sums.h).
#include "launch/sums.h"

#include <cstring>
#include <tuple>

#include "bind/op.h"

namespace ade {
namespace bind {
namespace {

using Given = std::optional<Tensor>;

template <class Args>
Args kinetic_of(Op& op, const Tensor& v, const Tensor& weight) {
  op.not_bfloat16("v");
  Args args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.cols = op.cols();
  args.weight = op.number("weight", weight);
  args.v = op.states("v", v);
  return args;
}

Tensor kinetic(const Tensor& v, const Tensor& weight) {
  Op op("kinetic", "v", v);
  auto args = kinetic_of<Kinetic>(op, v, weight);
  const Tensor energy = op.new_per_sample();
  args.energy = energy.data_ptr();
  op.run_on_cpu(args);
  return energy;
}

Tensor kinetic_backward(const Tensor& denergy, const Tensor& v, const Tensor& weight) {
  Op op("kinetic_backward", "v", v);
  auto args = kinetic_of<KineticBackward>(op, v, weight);
  args.denergy = op.per_sample("denergy", denergy);
  const Tensor dv = op.new_states();
  args.dv = dv.data_ptr();
  op.run_on_cpu(args);
  return dv;
}

template <class Args>
Args mean_square_of(Op& op, const Tensor& first, const Given& second) {
  op.not_bfloat16("first");
  Args args{};
  args.dtype = op.dtype();
  args.rows = op.rows();
  args.u[0] = op.states("first", first);
  args.size[0] = op.rows() * op.cols();
  if (second) {
    const int64_t rows = second->dim() > 0 ? second->size(0) : 0;
    args.u[1] = op.of_shape("second", *second, "as many columns", {rows, op.cols()});
    args.size[1] = rows * op.cols();
    args.rows += rows;
  }
  return args;
}

Tensor mean_square(const Tensor& first, const Given& second) {
  Op op("mean_square", "first", first);
  auto args = mean_square_of<MeanSquare>(op, first, second);
  const Tensor mean = op.new_number();
  args.mean = mean.data_ptr();
  op.run_on_cpu(args);
  return mean;
}

std::tuple<Tensor, Tensor> mean_square_backward(const Tensor& dmean, const Tensor& first,
                                                const Given& second) {
  Op op("mean_square_backward", "first", first);
  auto args = mean_square_of<MeanSquareBackward>(op, first, second);
  args.dmean = op.of_shape("dmean", dmean, "no dimensions", {});
  const Tensor dfirst = op.new_states();
  const Tensor dsecond = second ? op.new_of_shape({second->size(0), op.cols()}) : op.absent();
  args.du[0] = dfirst.data_ptr();
  args.du[1] = dsecond.data_ptr();
  op.run_on_cpu(args);
  return {dfirst, dsecond};
}

// Some tensors of any shape, of one dtype; there are some: of none the dispatcher knows no device.
struct Parts {
  Op op;
  std::vector<int64_t> sizes;
  std::vector<const void*> data;

  Parts(const char* name, const std::vector<Tensor>& tensors)
      : op(name, "tensors[0]", tensors[0], Op::AnyShape{}) {
    op.not_bfloat16("tensors[0]");
    for (size_t k = 0; k < tensors.size(); ++k) {
      data.push_back(op.of_any_shape("tensors", k, tensors[k]));
      sizes.push_back(tensors[k].numel());
    }
  }

  template <class Args>
  Args args() const {
    Args args{};
    args.dtype = op.dtype();
    args.count = static_cast<int64_t>(data.size());
    args.size = sizes.data();
    args.parts = data.data();
    return args;
  }
};

std::vector<Tensor> means(const std::vector<Tensor>& tensors) {
  const Parts parts("means", tensors);
  std::vector<Tensor> found;
  std::vector<void*> data;
  for (size_t k = 0; k < tensors.size(); ++k) {
    found.push_back(parts.op.new_number());
    data.push_back(found.back().data_ptr());
  }
  auto args = parts.args<Means>();
  args.means = data.data();
  parts.op.run_on_cpu(args);
  return found;
}

Tensor total_norms(const std::vector<Tensor>& first, const std::vector<Tensor>& second) {
  std::vector<Tensor> tensors(first);
  tensors.insert(tensors.end(), second.begin(), second.end());
  const Parts parts("total_norms", tensors);
  const Tensor norms = parts.op.new_of_shape({2});
  auto args = parts.args<TotalNorms>();
  args.first = static_cast<int64_t>(first.size());
  args.norms = norms.data_ptr();
  parts.op.run_on_cpu(args);
  return norms;
}

// One tensor of them all.
Tensor numbers(const std::vector<Tensor>& tensors) {
  const Parts parts("numbers", tensors);
  const Tensor found = parts.op.new_of_shape({static_cast<int64_t>(tensors.size())});
  const size_t bytes = parts.op.dtype() == kFloat64 ? 8 : 4;
  for (size_t k = 0; k < tensors.size(); ++k) {
    if (parts.sizes[k] != 1)
      parts.op.fail("tensors[" + std::to_string(k) + "] must be a number, got " +
                    std::to_string(parts.sizes[k]) + " entries");
    std::memcpy(static_cast<char*>(found.data_ptr()) + k * bytes, parts.data[k], bytes);
  }
  return found;
}

}  // namespace
}  // namespace bind
}  // namespace ade

STABLE_TORCH_LIBRARY_FRAGMENT(ade_fast, m) {
  m.def("kinetic(Tensor v, Tensor weight) -> Tensor energy");
  m.def("kinetic_backward(Tensor denergy, Tensor v, Tensor weight) -> Tensor dv");
  m.def("mean_square(Tensor first, Tensor? second) -> Tensor mean");
  m.def(
      "mean_square_backward(Tensor dmean, Tensor first, Tensor? second) -> (Tensor dfirst, Tensor dsecond)");
  m.def("means(Tensor[] tensors) -> Tensor[] means");
  m.def("numbers(Tensor[] tensors) -> Tensor");
  m.def("total_norms(Tensor[] first, Tensor[] second) -> Tensor norms");
}

STABLE_TORCH_LIBRARY_IMPL(ade_fast, CPU, m) {
  m.impl("kinetic", TORCH_BOX(&ade::bind::kinetic));
  m.impl("kinetic_backward", TORCH_BOX(&ade::bind::kinetic_backward));
  m.impl("mean_square", TORCH_BOX(&ade::bind::mean_square));
  m.impl("mean_square_backward", TORCH_BOX(&ade::bind::mean_square_backward));
  m.impl("means", TORCH_BOX(&ade::bind::means));
  m.impl("numbers", TORCH_BOX(&ade::bind::numbers));
  m.impl("total_norms", TORCH_BOX(&ade::bind::total_norms));
}
