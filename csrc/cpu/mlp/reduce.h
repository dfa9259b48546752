// The sums of one group of tiles, and the sum over the groups in their order, written out row-major.
#pragma once

#include "cpu/mlp/network.h"
#include "cpu/mlp/tasks.h"

namespace ade {
namespace ADE_ISA {
namespace mlp {

// Adds the same element of every group's block: group g's is `stride` bytes after group g - 1's.
template <class T>
struct OverGroups {
  int64_t count, stride;

  T sum(const T* first) const {
    T total = 0;
    for (int64_t g = 0; g < count; ++g) total += *at(first, g);
    return total;
  }
  void sum(const T* first, int64_t size, T* total) const {
    for (int64_t i = 0; i < size; ++i) total[i] = 0;
    for (int64_t g = 0; g < count; ++g) {
      const T* const terms = at(first, g);
      for (int64_t i = 0; i < size; ++i) total[i] += terms[i];
    }
  }

 private:
  const T* at(const T* first, int64_t g) const {
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(first) + g * stride);
  }
};

// The top's gradients from M and m (potentials/mlp.h). Units are the tasks.
template <class T>
void reduce_top(const MlpShape& shape, const MlpWeights& weights, const WeightSums<T>& first,
                const OverGroups<T>& groups, const MlpWeightGradients& dweights, cpu::Parallel parallel) {
  const int l = shape.layers;
  const int64_t in = width(shape, l - 1), units = width(shape, l);
  const T* const w = static_cast<const T*>(weights.weight[l]);
  const T* const b = static_cast<const T*>(weights.bias[l - 1]);
  T* const dw = static_cast<T*>(dweights.weight[l]);
  T* const db = static_cast<T*>(dweights.bias[l - 1]);
  const auto body = [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const T* const weight = static_cast<const T*>(weights.weight[l - 1]) + unit * in;
      T* const dweight = static_cast<T*>(dweights.weight[l - 1]) + unit * in;
      const T m = groups.sum(first.bias[l] + unit);
      T total[kPanel<T>] = {};
      for (int64_t p = 0; p < in / kPanel<T>; ++p) {
        T row[kPanel<T>];
        groups.sum(first.weight[l] + (p * units + unit) * kPanel<T>, kPanel<T>, row);
        for (int64_t c = 0; c < kPanel<T>; ++c) {
          total[c] += weight[p * kPanel<T> + c] * row[c];
          dweight[p * kPanel<T> + c] = w[unit] * row[c];
        }
      }
      T dot = 0;
      for (int64_t c = 0; c < kPanel<T>; ++c) dot += total[c];
      const bool off = m == 0 && __builtin_isinf(b[unit]);  // -inf switches a unit of relu off
      dw[unit] = off ? dot : dot + b[unit] * m;
      db[unit] = w[unit] * m;
    }
  };
  parallel_for(parallel, units, groups.count * in, body);
}

// dweights from the sums over the groups; `first` are those of group 0. Panels are the tasks.
template <class T>
void reduce_weights(const MlpShape& shape, const MlpWeights& weights, const WeightSums<T>& first,
                    const OverGroups<T>& groups, const MlpWeightGradients& dweights, cpu::Parallel parallel) {
  const bool bits = top_is_bits(shape);
  const int layers = shape.layers - (bits ? 1 : 0);  // that are no more than their sums
  groups.sum(first.out_bias, 1, static_cast<T*>(dweights.bias[shape.layers]));
  if (bits) {
    reduce_top(shape, weights, first, groups, dweights, parallel);
  } else {
    groups.sum(first.out, width(shape, layers), static_cast<T*>(dweights.weight[layers]));
  }
  for (int l = 1; l <= layers; ++l) {
    groups.sum(first.bias[l], width(shape, l), static_cast<T*>(dweights.bias[l - 1]));
  }

  int64_t first_panel[kMaxHiddenLayers + 2] = {0, 0};
  for (int l = 1; l <= layers; ++l) {
    first_panel[l + 1] = first_panel[l] + width(shape, summed_transposed(shape, l) ? l : l - 1) / kPanel<T>;
  }
  const auto body = [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      int l = 1;
      while (task >= first_panel[l + 1]) ++l;
      const int64_t p = task - first_panel[l];
      const bool transposed = summed_transposed(shape, l);
      const int64_t in = width(shape, l - 1), rows = transposed ? in : width(shape, l);
      T* const out = static_cast<T*>(dweights.weight[l - 1]);
      for (int64_t r = 0; r < rows; ++r) {
        T row[kPanel<T>];
        groups.sum(first.weight[l] + (p * rows + r) * kPanel<T>, kPanel<T>, row);
        for (int64_t c = 0; c < kPanel<T>; ++c) {
          const int64_t unit = p * kPanel<T> + c;
          out[transposed ? unit * in + r : r * in + unit] = row[c];
        }
      }
    }
  };
  parallel_for(parallel, first_panel[layers + 1], groups.count * width(shape, layers) * kPanel<T>, body);
}

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
