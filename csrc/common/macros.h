// Compiler glue shared by every translation unit: host/device marks and the per-instruction-set namespace.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define ADE_HD __host__ __device__ __forceinline__
#else
#define ADE_HD inline
#endif

// Code that is compiled once per instruction set lives in a namespace named after that set. Templates and
// inline functions are weak symbols, of which the linker keeps one copy: without the namespace the baseline
// build could end up calling the AVX-512 copy and die on an older processor.
#ifndef ADE_ISA
#define ADE_ISA base
#endif
