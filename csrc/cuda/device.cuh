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
  extern __shared__ __align__(16) char memory[];
  __shared__ typename Body::Shared shared;
  DeviceBlock<Body> block(&shared, memory);
  Body::run(block, &args);
}

struct DeviceBackend {
  cudaStream_t stream;

  // What a body may ask for of shared memory on the current device; 0 where that cannot be told.
  int64_t memory_limit() const {
    int device = 0, bytes = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess)
      return 0;
    constexpr int kStatic = 1024;  // a body's Shared
    return bytes - kStatic;
  }

  template <class Body>
  int run(int64_t grid_x, int64_t grid_y, const typename Body::Args& args, int64_t memory_bytes = 0) {
    constexpr int64_t kWithoutAsking = 48 * 1024;
    if (memory_bytes + static_cast<int64_t>(sizeof(typename Body::Shared)) > kWithoutAsking) {
      const cudaError_t error =
          cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel<Body>),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(memory_bytes));
      if (error != cudaSuccess) return error;
    }
    typename Body::Args copy = args;
    void* arguments[] = {&copy};
    return cudaLaunchKernel(reinterpret_cast<const void*>(kernel<Body>),
                            dim3(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y)),
                            dim3(kThreads), arguments, static_cast<size_t>(memory_bytes), stream);
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
