// The two functions of ade::cuda that launch/mlp.h declares for an op.
#pragma once

#include "cuda/device.cuh"
#include "cuda/mlp/launch.h"

#define ADE_CUDA_MLP(Launch)                                                                                \
  int64_t ade::cuda::workspace_bytes(const ade::Launch& args) {                                             \
    return ade::ADE_ISA::kernels::mlp_workspace_bytes(ade::ADE_ISA::kernels::DeviceBackend{nullptr}, args); \
  }                                                                                                         \
  int ade::cuda::launch(const ade::Launch& args, void* stream) {                                            \
    ade::ADE_ISA::kernels::DeviceBackend backend{static_cast<cudaStream_t>(stream)};                        \
    return ade::ADE_ISA::kernels::launch_mlp(backend, args);                                                \
  }

namespace ade {
namespace ADE_ISA {
namespace kernels {

// MlpField has a file of its own.
inline int64_t field_bytes(const DeviceBackend&, const MlpField& field) {
  return cuda::workspace_bytes(field);
}
inline int launch_field(DeviceBackend& backend, const MlpField& field) {
  return cuda::launch(field, backend.stream);
}

}  // namespace kernels
}  // namespace ADE_ISA

namespace cuda {

// Of MlpUnrollBackward for a piecewise-linear potential, in a file of their own.
int64_t linear_backward_bytes(const MlpUnrollBackward& args);
int launch_linear_backward(const MlpUnrollBackward& args, void* stream);

}  // namespace cuda
}  // namespace ade
