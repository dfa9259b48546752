// Chooses the instruction set whose kernels run. The kernels are compiled once per set, each into a namespace
// of its own (common/macros.h); this file is compiled for the baseline.
#include "launch/cpu_isa.h"

#include <cstring>

#include "launch/figures.h"
#include "launch/generalized_leapfrog.h"
#include "launch/kink.h"
#include "launch/leapfrog.h"
#include "launch/log_weights.h"
#include "launch/merged_steps.h"
#include "launch/mlp.h"
#include "launch/philox.h"
#include "launch/planar_flow.h"
#include "launch/spline.h"
#include "launch/sums.h"

// Every launch of the CPU: one line per argument struct.
#define ADE_FOR_EACH_LAUNCH(X)            \
  X(AdjointFigures)                       \
  X(GeneralizedLeapfrogKick)              \
  X(GeneralizedLeapfrogKickBackward)      \
  X(GeneralizedLeapfrogDrift)             \
  X(GeneralizedLeapfrogDriftBackward)     \
  X(GeneralizedLeapfrogKickDrift)         \
  X(GeneralizedLeapfrogKickDriftBackward) \
  X(KinkBend)                             \
  X(KinkSlopes)                           \
  X(Kinetic)                              \
  X(KineticBackward)                      \
  X(LeapfrogKick)                         \
  X(LeapfrogKickBackward)                 \
  X(LeapfrogDrift)                        \
  X(LeapfrogDriftBackward)                \
  X(LeapfrogKickDrift)                    \
  X(LeapfrogKickDriftBackward)            \
  X(LogWeightFigures)                     \
  X(LogWeights)                           \
  X(MeanSquare)                           \
  X(MeanSquareBackward)                   \
  X(Means)                                \
  X(MergedSteps)                          \
  X(MergedStepsBackward)                  \
  X(MlpChain)                             \
  X(MlpField)                             \
  X(MlpFieldBackward)                     \
  X(MlpUnroll)                            \
  X(MlpUnrollBackward)                    \
  X(NormalLogDensity)                     \
  X(PhiloxNormal)                         \
  X(PlanarFlow)                           \
  X(PlanarFlowBackward)                   \
  X(RationalQuadraticSpline)              \
  X(RationalQuadraticSplineBackward)      \
  X(RenyiBound)                           \
  X(TemperedPower)                        \
  X(TotalNorms)                           \
  X(UnrollFigures)

#define ADE_DECLARE(Args)               \
  int64_t workspace_bytes(const Args&); \
  void launch(const Args&, cpu::Parallel);

namespace ade {

namespace base {
ADE_FOR_EACH_LAUNCH(ADE_DECLARE)
}
#ifdef ADE_HAS_X86_ISAS
namespace avx2 {
ADE_FOR_EACH_LAUNCH(ADE_DECLARE)
}
namespace avx512 {
ADE_FOR_EACH_LAUNCH(ADE_DECLARE)
}
#endif

namespace cpu {
namespace {

enum Isa { kBase, kAvx2, kAvx512 };
constexpr const char* kNames[] = {"base", "avx2", "avx512"};

bool has(Isa isa) {
#ifdef ADE_HAS_X86_ISAS
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == kAvx512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  if (isa == kAvx2) return avx2;
#endif
  return isa == kBase;
}

Isa widest() { return has(kAvx512) ? kAvx512 : (has(kAvx2) ? kAvx2 : kBase); }

Isa g_active = widest();

}  // namespace

const char* active_isa() { return kNames[g_active]; }

bool select_isa(const char* name) {
  constexpr Isa all[] = {kBase, kAvx2, kAvx512};
  for (const Isa isa : all) {
    if (std::strcmp(name, kNames[isa]) == 0 && has(isa)) {
      g_active = isa;
      return true;
    }
  }
  return false;
}

#ifdef ADE_HAS_X86_ISAS
#define ADE_IN_ACTIVE_ISA(call) \
  switch (g_active) {           \
    case kAvx512:               \
      return avx512::call;      \
    case kAvx2:                 \
      return avx2::call;        \
    default:                    \
      return base::call;        \
  }
#else
#define ADE_IN_ACTIVE_ISA(call) return base::call;
#endif
#define ADE_DISPATCH(Args)                                                               \
  int64_t workspace_bytes(const Args& args) { ADE_IN_ACTIVE_ISA(workspace_bytes(args)) } \
  void launch(const Args& args, Parallel parallel) { ADE_IN_ACTIVE_ISA(launch(args, parallel)) }

ADE_FOR_EACH_LAUNCH(ADE_DISPATCH)

}  // namespace cpu
}  // namespace ade
