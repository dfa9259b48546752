// A monotonic rational-quadratic spline (Durkan et al., 2019): K pieces between knots on [-B, B]², the
// identity outside, from unconstrained widths [K], heights [K] and inner slopes [K - 1], as zuko's
// MonotonicRQSTransform has them. Each formula with its vector-Jacobian product beneath it.
//
//   squash      a / (1 + |a| / c), c = |log least| for slopes and half of it for widths and heights
//   knots       x_k = B (2 Σ_{j<k} p_j - 1) with p = softmax(squash(widths)); y_k likewise; d_k =
//   exp(squash(slopes)),
//               and d_0 = d_K = 1
//   piece       z = (x - x_k) / Δx, s = Δy / Δx, q = z (1 - z), e = d_k + d_{k+1} - 2 s,
//               y = y_k + Δy (s z² + d_k q) / (s + e q),
//               ∂y/∂x = s² (2 s q + d_k (1 - z)² + d_{k+1} z²) / (s + e q)²
#pragma once

#include "common/macros.h"

namespace ade {
namespace ADE_ISA {
namespace spline {

// --------------------------------------------------------------------------------------- unconstrained
// numbers

template <class T>
ADE_HD T squash(T a, T limit) {
  return a / (T(1) + std::fabs(a) / limit);
}
template <class T>
ADE_HD T squash_slope(T a, T limit) {
  const T root = T(1) + std::fabs(a) / limit;
  return T(1) / (root * root);
}

// Everything that a spline of one coordinate is made of.
template <class T>
struct Numbers {
  const T* widths;         // [K]
  const T* heights;        // [K]
  const T* slopes;         // [K - 1]
  int pieces;              // K
  T bound;                 // B
  T limit;                 // |log least|
  const T* known_widths;   // [K] p up to its sum where someone has it already, or null
  const T* known_heights;  // [K]

  // p up to its sum. Squashed numbers are small: nothing overflows.
  ADE_HD T width(int j) const {
    return known_widths ? known_widths[j] : std::exp(squash(widths[j], limit / T(2)));
  }
  ADE_HD T height(int j) const {
    return known_heights ? known_heights[j] : std::exp(squash(heights[j], limit / T(2)));
  }
  ADE_HD T slope(int k) const {
    return k == 0 || k == pieces ? T(1) : std::exp(squash(slopes[k - 1], limit));
  }
};

// ---------------------------------------------------------------------------------------------- one piece

template <class T>
struct Piece {
  int k;  // which; -1: outside
  T x0, x1, y0, y1, d0, d1;
  T width_sum, height_sum;  // of all p up to its sum

  ADE_HD bool inside() const { return k >= 0; }
};

// The piece that holds x, or y.
template <class T>
ADE_HD Piece<T> find(const Numbers<T>& of, T at, bool by_y) {
  Piece<T> piece = {};
  piece.k = -1;
  for (int j = 0; j < of.pieces; ++j) {
    piece.width_sum += of.width(j);
    piece.height_sum += of.height(j);
  }
  if (!(at > -of.bound && at <= of.bound)) return piece;
  T width = 0, height = 0;
  piece.x0 = piece.y0 = -of.bound;
  for (int j = 0; j < of.pieces; ++j) {
    const bool last = j + 1 == of.pieces;  // which ends at B, whatever the sum has rounded to
    width += of.width(j);
    height += of.height(j);
    piece.x1 = last ? of.bound : of.bound * (T(2) * (width / piece.width_sum) - T(1));
    piece.y1 = last ? of.bound : of.bound * (T(2) * (height / piece.height_sum) - T(1));
    if (at <= (by_y ? piece.y1 : piece.x1)) {
      piece.k = j;
      break;
    }
    piece.x0 = piece.x1;
    piece.y0 = piece.y1;
  }
  piece.d0 = of.slope(piece.k);
  piece.d1 = of.slope(piece.k + 1);
  return piece;
}

// What both directions are made of, at a point of a piece.
template <class T>
struct At {
  T dx, dy, s, z, q, e, above, below, slope;  // above / below: (y - y0) / Δy; slope: ∂y/∂x below² / s²

  ADE_HD At(const Piece<T>& piece, T x)
      : dx(piece.x1 - piece.x0),
        dy(piece.y1 - piece.y0),
        s(dy / dx),
        z((x - piece.x0) / dx),
        q(z * (T(1) - z)),
        e(piece.d0 + piece.d1 - T(2) * s),
        above(s * z * z + piece.d0 * q),
        below(s + e * q),
        slope(T(2) * s * q + piece.d0 * (T(1) - z) * (T(1) - z) + piece.d1 * z * z) {}

  ADE_HD T y(const Piece<T>& piece) const { return piece.y0 + dy * (above / below); }
  ADE_HD T log_slope() const { return std::log(s * s * slope / (below * below)); }
  ADE_HD T dy_by_dx() const { return s * s * slope / (below * below); }
};

// x of a piece from its y: the root of a quadratic that does not cancel.
template <class T>
ADE_HD T solve(const Piece<T>& piece, T y) {
  const T dx = piece.x1 - piece.x0, dy = piece.y1 - piece.y0, s = dy / dx, above = y - piece.y0;
  const T e = piece.d0 + piece.d1 - T(2) * s;
  const T a = dy * (s - piece.d0) + above * e, b = dy * piece.d0 - above * e, c = -s * above;
  const T square = b * b - T(4) * a * c;
  return piece.x0 + T(2) * c / (-b - std::sqrt(square > T(0) ? square : T(0))) * dx;
}

template <class T>
struct PieceVjp {
  T x, x0, x1, y0, y1, d0, d1;
};
// Of ⟨y, gy⟩ + ⟨log ∂y/∂x, gl⟩ at x.
template <class T>
ADE_HD PieceVjp<T> piece_vjp(const Piece<T>& piece, const At<T>& at, T gy, T gl) {
  const T one_z = T(1) - at.z, ratio = at.above / at.below;
  const T dabove = gy * at.dy / at.below, dslope = gl / at.slope;
  const T dbelow = -(gy * at.dy * ratio + T(2) * gl) / at.below;
  const T dq = dslope * T(2) * at.s + dbelow * at.e + dabove * piece.d0;
  const T dz = dq * (T(1) - T(2) * at.z) + T(2) * dslope * (piece.d1 * at.z - piece.d0 * one_z) +
               T(2) * dabove * at.s * at.z;
  const T ds = T(2) * gl / at.s + T(2) * dslope * at.q + dbelow * (T(1) - T(2) * at.q) + dabove * at.z * at.z;
  const T dheight = gy * ratio + ds / at.dx;          // of Δy
  const T dwidth = -(dz * at.z + ds * at.s) / at.dx;  // of Δx
  PieceVjp<T> out;
  out.x = dz / at.dx;
  out.x0 = -out.x - dwidth;
  out.x1 = dwidth;
  out.y0 = gy - dheight;
  out.y1 = dheight;
  out.d0 = dslope * one_z * one_z + (dbelow + dabove) * at.q;
  out.d1 = dslope * at.z * at.z + dbelow * at.q;
  return out;
}

// ---------------------------------------------------------------------------------------------- the map

template <class T>
struct Image {
  T x, log_slope;
};
// y and log ∂y/∂x, or with `inverse` x and log ∂x/∂y.
template <class T>
ADE_HD Image<T> map(const Numbers<T>& of, T x, bool inverse) {
  const Piece<T> piece = find(of, x, inverse);
  if (!piece.inside()) return {x, T(0)};
  if (!inverse) {
    const At<T> at(piece, x);
    return {at.y(piece), at.log_slope()};
  }
  const T root = solve(piece, x);
  return {root, -At<T>(piece, root).log_slope()};
}

// From the cotangents of p's cumulative sums at both ends of piece k to those of the unconstrained numbers.
template <class T>
struct KnotVjp {
  T at0, at1, mean;
  int k;

  // start, end: the piece's own knots; the first and the last do not move.
  ADE_HD KnotVjp(int k, int pieces, T bound, T start, T end, T dstart, T dend)
      : at0(k == 0 ? T(0) : T(2) * bound * dstart), at1(k + 1 == pieces ? T(0) : T(2) * bound * dend), k(k) {
    mean = at0 * (start / bound + T(1)) / T(2) + at1 * (end / bound + T(1)) / T(2);
  }
  // p: of number j, a its unconstrained value.
  ADE_HD T number(int j, T p, T a, T limit) const {
    const T direct = (j < k ? at0 : T(0)) + (j <= k ? at1 : T(0));
    return p * (direct - mean) * squash_slope(a, limit);
  }
};

// The cotangents of x and of all numbers, from those of the map's two results; x_out: the map's.
template <class T>
ADE_HD T map_vjp(const Numbers<T>& of, T x, T x_out, T dx_out, T dlog_slope, bool inverse, T* dwidths,
                 T* dheights, T* dslopes) {
  const Piece<T> piece = find(of, x, inverse);
  T dx = dx_out;
  PieceVjp<T> vjp = {};
  if (piece.inside()) {
    const At<T> at(piece, inverse ? x_out : x);
    if (inverse) {
      // With g the whole cotangent of x = f⁻¹(y), that of log ∂x/∂y included: y's is g / f', a number's -g
      // f_θ / f'.
      const T g = (dx_out + piece_vjp(piece, at, T(0), -dlog_slope).x) / at.dy_by_dx();
      vjp = piece_vjp(piece, at, -g, -dlog_slope);
      dx = g;
    } else {
      vjp = piece_vjp(piece, at, dx_out, dlog_slope);
      dx = vjp.x;
    }
  }
  const KnotVjp<T> horizontal(piece.k, of.pieces, of.bound, piece.x0, piece.x1, vjp.x0, vjp.x1);
  const KnotVjp<T> vertical(piece.k, of.pieces, of.bound, piece.y0, piece.y1, vjp.y0, vjp.y1);
  for (int j = 0; j < of.pieces; ++j) {
    const bool inside = piece.inside();
    dwidths[j] =
        inside ? horizontal.number(j, of.width(j) / piece.width_sum, of.widths[j], of.limit / T(2)) : T(0);
    dheights[j] =
        inside ? vertical.number(j, of.height(j) / piece.height_sum, of.heights[j], of.limit / T(2)) : T(0);
  }
  for (int j = 0; j + 1 < of.pieces; ++j) {
    T dd = T(0);
    if (j == piece.k - 1) dd = vjp.d0 * piece.d0;
    if (j == piece.k && piece.inside()) dd = vjp.d1 * piece.d1;
    dslopes[j] = dd == T(0) ? T(0) : dd * squash_slope(of.slopes[j], of.limit);
  }
  return dx;
}

}  // namespace spline
}  // namespace ADE_ISA
}  // namespace ade
