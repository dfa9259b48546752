// MLP potentials: value and gradient, and their vector-Jacobian product (cuda/mlp/field.h).
#include "cuda/mlp/device.cuh"

ADE_CUDA_MLP(MlpField)
ADE_CUDA_MLP(MlpFieldBackward)
