// MLP potentials: the unroll backwards, of smooth ones (cuda/mlp/unroll_backward.h).
#include "cuda/mlp/device.cuh"

using namespace ade::ADE_ISA::kernels;

int64_t ade::cuda::workspace_bytes(const MlpUnrollBackward& args) {
  return piecewise_linear(args.shape.activation) ? linear_backward_bytes(args)
                                                 : mlp_workspace_bytes(DeviceBackend{nullptr}, args);
}
int ade::cuda::launch(const MlpUnrollBackward& args, void* stream) {
  if (piecewise_linear(args.shape.activation)) return launch_linear_backward(args, stream);
  DeviceBackend backend{static_cast<cudaStream_t>(stream)};
  return launch_mlp(backend, args);
}
