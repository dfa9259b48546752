// Leapfrog's kicks and drifts from its step sizes on the CPU. Compiled once per instruction set
// (cpu/dispatch.cpp chooses).
#include "launch/merged_steps.h"

#include <cstring>

#include "cpu/rows.h"

namespace ade {
namespace ADE_ISA {
namespace {

template <class T>
void launch_as(const MergedSteps& args) {
  const int64_t cols = args.cols, stride = args.rows == 1 ? 0 : cols;
  const T* const step = static_cast<const T*>(args.step);
  T *const kick = static_cast<T*>(args.kick), *const drift = static_cast<T*>(args.drift);
  for (int64_t t = 0; t <= args.steps; ++t) {
    const T *const before = step + (t - 1) * stride, *const after = step + t * stride;
    for (int64_t d = 0; d < cols; ++d) {
      const T begins = t == args.steps ? T(0) : T(0.5) * after[d], ends = t == 0 ? T(0) : T(0.5) * before[d];
      kick[t * cols + d] = begins + ends;
    }
    if (t < args.steps) memcpy(drift + t * cols, after, cols * sizeof(T));
  }
}

template <class T>
void launch_as(const MergedStepsBackward& args) {
  const int64_t cols = args.cols, stride = args.rows == 1 ? 0 : cols;
  const T *const dkick = static_cast<const T*>(args.dkick), *const ddrift =
                                                                static_cast<const T*>(args.ddrift);
  T* const dstep = static_cast<T*>(args.dstep);
  for (int64_t i = 0; i < args.rows * cols; ++i) dstep[i] = 0;
  for (int64_t t = 0; t < args.steps; ++t) {
    for (int64_t d = 0; d < cols; ++d) {
      const int64_t at = t * cols + d;
      const T own = ddrift == nullptr ? T(0) : ddrift[at];
      dstep[t * stride + d] += own + T(0.5) * (dkick[at] + dkick[at + cols]);
    }
  }
}

}  // namespace

int64_t workspace_bytes(const MergedSteps&) { return 0; }
int64_t workspace_bytes(const MergedStepsBackward&) { return 0; }
void launch(const MergedSteps& args, cpu::Parallel) {
  args.dtype == kFloat64 ? launch_as<double>(args) : launch_as<float>(args);
}
void launch(const MergedStepsBackward& args, cpu::Parallel) {
  args.dtype == kFloat64 ? launch_as<double>(args) : launch_as<float>(args);
}

}  // namespace ADE_ISA
}  // namespace ade
