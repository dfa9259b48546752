// The kernels of rational-quadratic splines (cuda/spline.h).
#include "cuda/spline.h"

#include "cuda/device.cuh"

ADE_CUDA_STEP(RationalQuadraticSpline)
ADE_CUDA_STEP(RationalQuadraticSplineBackward)
