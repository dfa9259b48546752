// The Gaussian beside f, over the rows of a tile (potentials/affine_force.h).
#pragma once

#include "common/macros.h"
#include "potentials/affine_force.h"

namespace ade {
namespace ADE_ISA {
namespace mlp {

template <class T>
struct Gaussian {
  const void* pull;    // [D], or null: none, and nothing is added
  const void* centre;  // [D], with pull
  int64_t dim;

  void add_value(int64_t rows, const T* x, T* value) const {
    each(rows, [&](int64_t r, int64_t at, const auto& by) { value[r] += affine_force::value(x[at], by); });
  }
  void add_force(int64_t rows, const T* x, T* force) const {
    each(rows,
         [&](int64_t, int64_t at, const auto& by) { force[at] = affine_force::force(force[at], x[at], by); });
  }
  void add_value_vjp(int64_t rows, const T* x, const T* dvalue, T* dx) const {
    each(rows, [&](int64_t r, int64_t at, const auto& by) {
      dx[at] += affine_force::value_vjp(dvalue[r], x[at], by);
    });
  }
  void add_force_vjp(int64_t rows, const T* x, const T* dforce, T* dx) const {
    each(rows, [&](int64_t, int64_t at, const auto& by) {
      dx[at] += affine_force::force_vjp(dforce[at], T(0), x[at], by).dx;
    });
  }

 private:
  template <class Element>
  void each(int64_t rows, const Element& element) const {
    for (int64_t r = 0; pull && r < rows; ++r) {
      for (int64_t d = 0; d < dim; ++d) {
        element(r, r * dim + d, affine_force::Coefficients<T>::at(nullptr, pull, centre, 0, dim, d));
      }
    }
  }
};

}  // namespace mlp
}  // namespace ADE_ISA
}  // namespace ade
