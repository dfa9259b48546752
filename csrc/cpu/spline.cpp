// Rational-quadratic splines on the CPU, one coordinate of one sample after another (flows/spline.h); the
// exponentials of its pieces at once. Compiled once per instruction set (cpu/dispatch.cpp chooses).
#include "flows/spline.h"

#include "cpu/rows.h"
#include "cpu/vector_exp.h"
#include "launch/spline.h"

namespace ade {
namespace ADE_ISA {
namespace {

// A spline's numbers, and p of all its pieces.
template <class T>
struct Coordinate {
  T width[kSplinePieces], height[kSplinePieces];
  spline::Numbers<T> numbers;

  template <class Args>
  Coordinate(const Args& args, int64_t i)
      : numbers{static_cast<const T*>(args.widths) + i * args.pieces,
                static_cast<const T*>(args.heights) + i * args.pieces,
                static_cast<const T*>(args.slopes) + i * (args.pieces - 1),
                static_cast<int>(args.pieces),
                static_cast<T>(args.bound),
                static_cast<T>(-std::log(args.least)),
                width,
                height} {
    const T limit = numbers.limit / T(2);
#pragma omp simd
    for (int j = 0; j < numbers.pieces; ++j) {
      width[j] = vector_exp(spline::squash(numbers.widths[j], limit));
      height[j] = vector_exp(spline::squash(numbers.heights[j], limit));
    }
  }
};

template <class T, class Args, class Body>
void each_coordinate(const Args& args, cpu::Parallel parallel, const Body& body) {
  parallel_for(parallel, args.rows * args.cols, 16 * args.pieces, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(Coordinate<T>(args, i).numbers, i);
  });
}

template <class T>
void launch_as(const RationalQuadraticSpline& args, cpu::Parallel parallel) {
  each_coordinate<T>(args, parallel, [&](const spline::Numbers<T>& numbers, int64_t i) {
    const auto image = spline::map(numbers, static_cast<const T*>(args.x)[i], args.inverse);
    static_cast<T*>(args.x_out)[i] = image.x;
    static_cast<T*>(args.log_slope)[i] = image.log_slope;
  });
}

template <class T>
void launch_as(const RationalQuadraticSplineBackward& args, cpu::Parallel parallel) {
  const auto at = [](const void* data, int64_t i) { return static_cast<const T*>(data)[i]; };
  each_coordinate<T>(args, parallel, [&](const spline::Numbers<T>& numbers, int64_t i) {
    static_cast<T*>(args.dx)[i] = spline::map_vjp(
        numbers, at(args.x, i), at(args.x_out, i), at(args.dx_out, i), at(args.dlog_slope, i), args.inverse,
        static_cast<T*>(args.dwidths) + i * args.pieces, static_cast<T*>(args.dheights) + i * args.pieces,
        static_cast<T*>(args.dslopes) + i * (args.pieces - 1));
  });
}

template <class Args>
void launch_any(const Args& args, cpu::Parallel parallel) {
  args.dtype == kFloat64 ? launch_as<double>(args, parallel) : launch_as<float>(args, parallel);
}

}  // namespace

int64_t workspace_bytes(const RationalQuadraticSpline&) { return 0; }
int64_t workspace_bytes(const RationalQuadraticSplineBackward&) { return 0; }
void launch(const RationalQuadraticSpline& args, cpu::Parallel parallel) { launch_any(args, parallel); }
void launch(const RationalQuadraticSplineBackward& args, cpu::Parallel parallel) {
  launch_any(args, parallel);
}

}  // namespace ADE_ISA
}  // namespace ade
