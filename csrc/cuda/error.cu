// The text of the codes that launches return.
#include <cuda_runtime.h>

#include "launch/clips.h"

const char* ade::cuda::error_string(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
