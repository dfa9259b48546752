// The device backend: a __global__ function for each kernel body, and its launch on a stream.
#pragma once

#include <cuda_runtime.h>

#include "cuda/block.h"

namespace ade {
namespace ADE_ISA {
namespace kernels {

template <class Body>
__global__ void __launch_bounds__(kThreads, Body::kBlocks)
    kernel(const __grid_constant__ typename Body::Args args) {
  __shared__ typename Body::Shared shared;
  DeviceBlock<Body> block(&shared);
  Body::run(block, &args);
}

struct DeviceBackend {
  cudaStream_t stream;

  template <class Body>
  int run(int64_t grid_x, int64_t grid_y, const typename Body::Args& args) {
    typename Body::Args copy = args;
    void* arguments[] = {&copy};
    return cudaLaunchKernel(reinterpret_cast<const void*>(kernel<Body>),
                            dim3(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y)),
                            dim3(kThreads), arguments, 0, stream);
  }
};

}  // namespace kernels
}  // namespace ADE_ISA
}  // namespace ade

// The two functions of ade::cuda that launch/ declares for a step.
#define ADE_CUDA_STEP(Launch)                                                        \
  int64_t ade::cuda::workspace_bytes(const ade::Launch& args) {                      \
    return ade::ADE_ISA::kernels::workspace_bytes(args);                             \
  }                                                                                  \
  int ade::cuda::launch(const ade::Launch& args, void* stream) {                     \
    ade::ADE_ISA::kernels::DeviceBackend backend{static_cast<cudaStream_t>(stream)}; \
    return ade::ADE_ISA::kernels::launch(backend, args);                             \
  }
