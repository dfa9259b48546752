// MLP potentials: the unroll backwards (cuda/mlp/unroll_backward.h).
#include "cuda/mlp/device.cuh"

ADE_CUDA_MLP(MlpUnrollBackward)
