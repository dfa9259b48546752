// The kernels of rational-quadratic splines (flows/spline.h): a thread for each coordinate of each sample.
#pragma once

#include "cuda/block.h"
#include "flows/spline.h"
#include "launch/spline.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

template <class Launch, class T>
struct SplineArgs {
  Launch launch;
  T bound, limit;

  ADE_HD int64_t count() const { return launch.rows * launch.cols; }
  ADE_HD spline::Numbers<T> numbers(int64_t i) const {
    return {static_cast<const T*>(launch.widths) + i * launch.pieces,
            static_cast<const T*>(launch.heights) + i * launch.pieces,
            static_cast<const T*>(launch.slopes) + i * (launch.pieces - 1),
            static_cast<int>(launch.pieces),
            bound,
            limit,
            nullptr,
            nullptr};
  }
};

// Body of both: `Map::of(args, i)` is one coordinate.
template <class Map>
struct SplineBody {
  using Args = typename Map::Args;
  struct State {};
  struct Shared {};
  static constexpr int kBlocks = Map::kBlocks;

  template <class Block>
  static ADE_HD void run(Block& block, const Args* args) {
    const int64_t first = block.x() * kThreads;
    block.each([=](int t, State&) {
      if (first + t < args->count()) Map::of(*args, first + t);
    });
  }
};

template <class T>
struct SplineMap {
  using Args = SplineArgs<RationalQuadraticSpline, T>;
  static constexpr int kBlocks = 4;
  static ADE_HD void of(const Args& args, int64_t i) {
    const RationalQuadraticSpline& a = args.launch;
    const auto image = spline::map(args.numbers(i), static_cast<const T*>(a.x)[i], a.inverse);
    static_cast<T*>(a.x_out)[i] = image.x;
    static_cast<T*>(a.log_slope)[i] = image.log_slope;
  }
};
template <class T>
struct SplineMapVjp {
  using Args = SplineArgs<RationalQuadraticSplineBackward, T>;
  static constexpr int kBlocks = sizeof(T) == 8 ? 2 : 4;  // registers for none to be spilled
  static ADE_HD void of(const Args& args, int64_t i) {
    const RationalQuadraticSplineBackward& a = args.launch;
    static_cast<T*>(a.dx)[i] =
        spline::map_vjp(args.numbers(i), static_cast<const T*>(a.x)[i], static_cast<const T*>(a.x_out)[i],
                        static_cast<const T*>(a.dx_out)[i], static_cast<const T*>(a.dlog_slope)[i], a.inverse,
                        static_cast<T*>(a.dwidths) + i * a.pieces, static_cast<T*>(a.dheights) + i * a.pieces,
                        static_cast<T*>(a.dslopes) + i * (a.pieces - 1));
  }
};

template <template <class> class Map, class T, class Backend, class Launch>
int launch_spline(Backend& backend, const Launch& from) {
  const SplineArgs<Launch, T> args = {from, static_cast<T>(from.bound),
                                      static_cast<T>(-std::log(from.least))};
  if (args.count() == 0) return 0;
  return backend.template run<SplineBody<Map<T>>>((args.count() + kThreads - 1) / kThreads, 1, args);
}

inline int64_t workspace_bytes(const RationalQuadraticSpline&) { return 0; }
inline int64_t workspace_bytes(const RationalQuadraticSplineBackward&) { return 0; }
template <class Backend>
int launch(Backend& backend, const RationalQuadraticSpline& from) {
  return from.dtype == kFloat64 ? launch_spline<SplineMap, double>(backend, from)
                                : launch_spline<SplineMap, float>(backend, from);
}
template <class Backend>
int launch(Backend& backend, const RationalQuadraticSplineBackward& from) {
  return from.dtype == kFloat64 ? launch_spline<SplineMapVjp, double>(backend, from)
                                : launch_spline<SplineMapVjp, float>(backend, from);
}

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade
