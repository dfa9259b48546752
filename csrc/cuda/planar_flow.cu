// The planar flow's kernels, forward and backward (cuda/planar_flow.h).
#include "cuda/planar_flow.h"

#include "cuda/device.cuh"

ADE_CUDA_STEP(PlanarFlow)
ADE_CUDA_STEP(PlanarFlowBackward)
