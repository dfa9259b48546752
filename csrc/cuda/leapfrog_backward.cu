// Leapfrog, eq. (10), and damped leapfrog: the backward kernels (cuda/backward.h).
#include "cuda/arguments.h"
#include "cuda/device.cuh"

ADE_CUDA_STEP(LeapfrogKickBackward)
ADE_CUDA_STEP(LeapfrogDriftBackward)
ADE_CUDA_STEP(LeapfrogKickDriftBackward)
