// Generalized leapfrog, eq. (13): the forward kernels (cuda/forward.h).
#include "cuda/arguments.h"
#include "cuda/device.cuh"

ADE_CUDA_STEP(GeneralizedLeapfrogKick)
ADE_CUDA_STEP(GeneralizedLeapfrogDrift)
ADE_CUDA_STEP(GeneralizedLeapfrogKickDrift)
