// Leapfrog, eq. (10), and damped leapfrog: the forward kernels (cuda/forward.h).
#include "cuda/arguments.h"
#include "cuda/device.cuh"

ADE_CUDA_STEP(LeapfrogKick)
ADE_CUDA_STEP(LeapfrogDrift)
ADE_CUDA_STEP(LeapfrogKickDrift)
