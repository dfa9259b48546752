// The kernels of kink_bend and kink_slopes (cuda/kink.h).
#include "cuda/kink.h"

#include "cuda/device.cuh"

ADE_CUDA_STEP(KinkBend)
ADE_CUDA_STEP(KinkSlopes)
