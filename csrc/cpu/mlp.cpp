// MLP potentials on the CPU. Compiled once per instruction set; cpu/dispatch.cpp chooses.
#include "launch/mlp.h"

#include "cpu/mlp/field.h"
#include "cpu/mlp/unroll_backward.h"
#include "cpu/mlp/unroll_forward.h"

namespace ade {
namespace ADE_ISA {

template <template <class> class Kernel, class Args>
static int64_t bytes_of(const Args& args) {
  return args.dtype == kFloat64 ? Kernel<double>::workspace_bytes(args)
                                : Kernel<float>::workspace_bytes(args);
}
template <template <class> class Kernel, class Args>
static void launch_as(const Args& args, cpu::Parallel parallel) {
  if (args.dtype == kFloat64) {
    Kernel<double>::launch(args, parallel);
  } else {
    Kernel<float>::launch(args, parallel);
  }
}

int64_t workspace_bytes(const MlpUnroll& args) { return bytes_of<mlp::UnrollForward>(args); }
int64_t workspace_bytes(const MlpUnrollBackward& args) { return bytes_of<mlp::UnrollBackward>(args); }
int64_t workspace_bytes(const MlpField& args) { return bytes_of<mlp::Field>(args); }
int64_t workspace_bytes(const MlpFieldBackward& args) { return bytes_of<mlp::FieldBackward>(args); }

void launch(const MlpUnroll& args, cpu::Parallel parallel) { launch_as<mlp::UnrollForward>(args, parallel); }
void launch(const MlpUnrollBackward& args, cpu::Parallel parallel) {
  launch_as<mlp::UnrollBackward>(args, parallel);
}
void launch(const MlpField& args, cpu::Parallel parallel) { launch_as<mlp::Field>(args, parallel); }
void launch(const MlpFieldBackward& args, cpu::Parallel parallel) {
  launch_as<mlp::FieldBackward>(args, parallel);
}

}  // namespace ADE_ISA
}  // namespace ade
