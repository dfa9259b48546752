// One layer of the planar flow (Rezende and Mohamed, 2015), x' = x + û tanh(wᵀx + b) with log|det ∂x'/∂x| =
// log(1 + ûᵀw (1 - tanh²)): each formula with its vector-Jacobian product beneath it.
//
// û is u moved along w until ûᵀw = m(uᵀw) > -1, where m(a) = -1 + log(1 + (e - 1) eᵃ) and m(0) = 0. That is
// done once per layer, in float64. The maps take a sample, or a vector of samples: M supplies the number type
// V, tanh and log; states are anything that [j] reaches the j-th of d coordinates of.
#pragma once

#include "common/macros.h"

namespace ade {
namespace ADE_ISA {
namespace planar_flow {

// ------------------------------------------------------------------------------------------- the constraint

// A layer as its maps see it: û [d], w [d], b, 1 + ûᵀw. Its cotangents are stored in the same order.
ADE_HD int numbers_of(int64_t dim) { return static_cast<int>(2 * dim + 2); }

template <class T>
struct Layer {
  const T* numbers;
  int dim;

  ADE_HD T u_hat(int j) const { return numbers[j]; }
  ADE_HD T w(int j) const { return numbers[dim + j]; }
  ADE_HD T b() const { return numbers[2 * dim]; }
  ADE_HD T one_plus_uw() const { return numbers[2 * dim + 1]; }
};

// û = u + (m(a) - a) w / ‖w‖² with a = uᵀw.
struct Constraint {
  double a, square_norm;

  template <class T>
  ADE_HD Constraint(const T* u, const T* w, int dim) : a(0), square_norm(0) {
    for (int j = 0; j < dim; ++j) {
      a += static_cast<double>(u[j]) * w[j];
      square_norm += static_cast<double>(w[j]) * w[j];
    }
    constexpr double kTiny = 2.2250738585072014e-308;
    if (square_norm < kTiny) square_norm = kTiny;
  }

  static constexpr double kE = 2.71828182845904523536;
  static constexpr double kLogEMinus1 = 0.54132485461291810;

  // m(a) - a = log(1 + (e⁻ᵃ - 1) / e), exactly 0 at a = 0; linear below -80, where e⁻ᵃ would overflow
  ADE_HD double correction() const {
    const double a_floor = a < -80 ? -80 : a;
    return std::log1p(std::expm1(-a_floor) / kE) + (a_floor - a);
  }
  // 1 + ûᵀw = log(1 + (e - 1) eᵃ)
  ADE_HD double one_plus_uw() const {
    const double t = a + kLogEMinus1;
    return (t > 0 ? t : 0) + std::log1p(std::exp(-std::fabs(t)));
  }
  // The slope of 1 + ûᵀw by a, and 1 less it: the slope of the correction is -(1 - slope).
  ADE_HD void slopes(double& slope, double& rest) const {
    const double t = a + kLogEMinus1, e = std::exp(-std::fabs(t)), large = 1 / (1 + e), small = e / (1 + e);
    slope = t > 0 ? large : small;
    rest = t > 0 ? small : large;
  }
};

// From u [d], w [d] and b to the layer's numbers.
template <class T>
ADE_HD void constrain(const T* u, const T* w, T b, int dim, T* numbers) {
  const Constraint at(u, w, dim);
  const double multiple = at.correction() / at.square_norm;
  for (int j = 0; j < dim; ++j) {
    numbers[j] = static_cast<T>(u[j] + multiple * w[j]);
    numbers[dim + j] = w[j];
  }
  numbers[2 * dim] = b;
  numbers[2 * dim + 1] = static_cast<T>(at.one_plus_uw());
}
// `dnumbers` are the cotangents of the layer's numbers, summed over the batch.
template <class T>
ADE_HD void constrain_vjp(const double* dnumbers, const T* u, const T* w, int dim, T* du, T* dw, T* db) {
  const Constraint at(u, w, dim);
  const double multiple = at.correction() / at.square_norm;
  double dmultiple = 0, slope, rest;
  for (int j = 0; j < dim; ++j) dmultiple += dnumbers[j] * w[j];
  at.slopes(slope, rest);
  const double dcorrection = dmultiple / at.square_norm;
  const double da = dnumbers[2 * dim + 1] * slope - dcorrection * rest;
  const double dsquare_norm = -dcorrection * multiple;
  for (int j = 0; j < dim; ++j) {
    du[j] = static_cast<T>(dnumbers[j] + da * w[j]);
    dw[j] = static_cast<T>(dnumbers[dim + j] + multiple * dnumbers[j] + da * u[j] + 2 * dsquare_norm * w[j]);
  }
  *db = static_cast<T>(dnumbers[2 * dim]);
}

// ------------------------------------------------------------------------------------------------- the maps

// h = tanh(wᵀx + b)
template <class M, class X, class T>
ADE_HD typename M::V height(const X& x, const Layer<T>& layer) {
  typename M::V sum = layer.w(0) * x[0] + layer.b();
  for (int j = 1; j < layer.dim; ++j) sum += layer.w(j) * x[j];
  return M::tanh(sum);
}

// x' = x + û h; x_out may be x.
template <class V, class X, class XOut, class T>
ADE_HD void move(const X& x, V h, const Layer<T>& layer, XOut&& x_out) {
  for (int j = 0; j < layer.dim; ++j) x_out[j] = x[j] + layer.u_hat(j) * h;
}

// det ∂x'/∂x = 1 + ûᵀw (1 - h²), as a mean of two positive numbers: it cannot round to 0 or below.
template <class V, class T>
ADE_HD V determinant(V h, const Layer<T>& layer) {
  const V square = h * h;
  return layer.one_plus_uw() * (T(1) - square) + square;
}

// The cotangents of a sample's map: of wᵀx + b and of 1 + ûᵀw; h is what they were computed at.
template <class V>
struct MapVjp {
  V h, dsum, done_plus_uw;
};
// dx is the cotangent of x', and is left as it is.
template <class V, class DX, class T>
ADE_HD MapVjp<V> map_vjp(const DX& dx, V dlog_det, V h, const Layer<T>& layer) {
  const V slope = T(1) - h * h, ddeterminant = dlog_det / determinant(h, layer);
  V dh = T(2) * (T(1) - layer.one_plus_uw()) * h * ddeterminant;
  for (int j = 0; j < layer.dim; ++j) dh += layer.u_hat(j) * dx[j];
  return {h, slope * dh, slope * ddeterminant};
}
// The sample's part in the cotangent of the layer's i-th number; x is before the map, dx the cotangent of x'.
template <class V, class X, class DX>
ADE_HD V number_vjp(int i, const MapVjp<V>& vjp, const X& x, const DX& dx, int dim) {
  if (i < dim) return vjp.h * dx[i];
  if (i < 2 * dim) return vjp.dsum * x[i - dim];
  return i == 2 * dim ? vjp.dsum : vjp.done_plus_uw;
}
// From the cotangent of x' to that of x.
template <class V, class DX, class T>
ADE_HD void move_vjp(DX&& dx, const MapVjp<V>& vjp, const Layer<T>& layer) {
  for (int j = 0; j < layer.dim; ++j) dx[j] += layer.w(j) * vjp.dsum;
}

}  // namespace planar_flow
}  // namespace ADE_ISA
}  // namespace ade
