// The kernel of philox_normal (cuda/philox.h).
#include "cuda/philox.h"

#include "cuda/device.cuh"

ADE_CUDA_STEP(PhiloxNormal)
