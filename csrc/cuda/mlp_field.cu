// MLP potentials: value and gradient, and their vector-Jacobian product (cuda/mlp/field.h).
#include "cuda/mlp/device.cuh"

bool ade::cuda::runs_mlp() {
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major >= 8;
}

ADE_CUDA_MLP(MlpField)
ADE_CUDA_MLP(MlpFieldBackward)
