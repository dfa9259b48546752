// Generalized leapfrog, eq. (13): the backward kernels (cuda/backward.h).
#include "cuda/arguments.h"
#include "cuda/device.cuh"

ADE_CUDA_STEP(GeneralizedLeapfrogKickBackward)
ADE_CUDA_STEP(GeneralizedLeapfrogDriftBackward)
ADE_CUDA_STEP(GeneralizedLeapfrogKickDriftBackward)
