// What the bindings of all MLP operators share: the network of a call.
#pragma once

#include "bind/op.h"

namespace ade {
namespace bind {

using Tensors = std::vector<Tensor>;
using Given = std::optional<Tensor>;

// The network of a call: checked shape and weights.
struct Network {
  MlpShape shape{};
  int32_t precision;
  MlpWeights weights{};
  int64_t bit_bytes = 0;  // of φ' per sample

  Network(Op& op, const Tensors& weight, const Tensors& bias, int64_t activation, double parameter,
          int64_t precision) {
    op.not_bfloat16("states");
    if (op.dtype() == kFloat64 && op.on_cuda()) op.fail("states must be float32 on CUDA, got float64");
    op.mlp_device();
    if (weight.size() < 2 || weight.size() > kMaxHiddenLayers + 1 || bias.size() != weight.size()) {
      op.fail("weights and biases must be those of 1 to " + std::to_string(kMaxHiddenLayers) +
              " hidden layers and the output, got " + std::to_string(weight.size()) + " weights and " +
              std::to_string(bias.size()) + " biases");
    }
    if (activation < kRelu || activation > kElu) {
      op.fail("activation must be 0 to 5, got " + std::to_string(activation));
    }
    if (precision < kMediumPrecision || precision > kHighestPrecision) {
      op.fail("precision must be 1 (medium), 2 (high) or 3 (highest), got " + std::to_string(precision));
    }
    this->precision = static_cast<int32_t>(precision);
    shape.activation = static_cast<int32_t>(activation);
    shape.parameter = op.finite("parameter", parameter);
    if (activation == kLeakyRelu && parameter < 0) {
      op.fail("parameter, leaky relu's slope, must not be negative, got " + std::to_string(parameter));
    }
    shape.dim = static_cast<int32_t>(op.cols());
    shape.layers = static_cast<int32_t>(weight.size()) - 1;
    int64_t in = op.cols();
    if (in < 1) op.fail("states must have at least one column, got 0");
    for (int l = 0; l <= shape.layers; ++l) {
      const std::string of = "[" + std::to_string(l) + "]";
      const int64_t out = l == shape.layers ? 1 : weight[l].size(0);
      if (l < shape.layers) {
        if (out < 32 || out % 32 != 0) {
          op.fail("weights" + of + " must have a multiple of 32 rows, got " + std::to_string(out));
        }
        shape.width[l] = static_cast<int32_t>(out);
        bit_bytes += out / 8;
      }
      weights.weight[l] = op.of_shape(("weights" + of).c_str(), weight[l], "the network's layer", {out, in});
      weights.bias[l] = op.of_shape(("biases" + of).c_str(), bias[l], "the network's layer", {out});
      in = out;
    }
  }
};

// Gradients of the weights: allocated and in the struct, or neither.
struct NetworkGradients {
  Tensors weight, bias;
  MlpWeightGradients pointers{};

  NetworkGradients(const Op& op, const Tensors& weights, bool wanted) {
    for (size_t l = 0; wanted && l < weights.size(); ++l) {
      weight.push_back(op.new_of_shape({weights[l].size(0), weights[l].size(1)}));
      bias.push_back(op.new_of_shape({weights[l].size(0)}));
      pointers.weight[l] = weight[l].data_ptr();
      pointers.bias[l] = bias[l].data_ptr();
    }
  }
};

inline int32_t workers() { return static_cast<int32_t>(torch::stable::get_num_threads()); }

// Tensors that only make sense together.
inline void all_or_none(const Op& op, const char* names, std::initializer_list<const Given*> tensors) {
  size_t given = 0;
  for (const Given* tensor : tensors) given += tensor->has_value();
  if (given != 0 && given != tensors.size()) op.fail(std::string(names) + " must come together");
}

inline const void* rows_of(Op& op, const char* argument, const Given& tensor, const char* meaning,
                           std::initializer_list<int64_t> shape) {
  return tensor ? op.of_shape(argument, *tensor, meaning, shape) : nullptr;
}

}  // namespace bind
}  // namespace ade
