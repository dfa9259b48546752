// MLP potentials: the unroll (cuda/mlp/unroll.h).
#include "cuda/mlp/device.cuh"

ADE_CUDA_MLP(MlpUnroll)
