// Markov chains of MLP potentials on the CPU. Compiled once per instruction set; cpu/dispatch.cpp chooses.
#include "cpu/mlp/chain.h"

namespace ade {
namespace ADE_ISA {

int64_t workspace_bytes(const MlpChain& args) {
  return args.dtype == kFloat64 ? mlp::Chain<double>::workspace_bytes(args)
                                : mlp::Chain<float>::workspace_bytes(args);
}
void launch(const MlpChain& args, cpu::Parallel parallel) {
  if (args.dtype == kFloat64) {
    mlp::Chain<double>::launch(args, parallel);
  } else {
    mlp::Chain<float>::launch(args, parallel);
  }
}

}  // namespace ADE_ISA
}  // namespace ade
