// MLP potentials: the unroll backwards, of piecewise-linear ones (cuda/mlp/linear_backward.h).
#include "cuda/mlp/device.cuh"

using namespace ade::ADE_ISA::kernels;

int64_t ade::cuda::linear_backward_bytes(const MlpUnrollBackward& args) {
  return ADE_ISA::kernels::linear_backward_bytes(DeviceBackend{nullptr}, args);
}
int ade::cuda::launch_linear_backward(const MlpUnrollBackward& args, void* stream) {
  DeviceBackend backend{static_cast<cudaStream_t>(stream)};
  return ADE_ISA::kernels::launch_linear_backward(backend, args);
}
