# Sets ADE_CUDA_ARCHS, which GPUs to compile for, and ADE_GENCODE, how to say so to nvcc.
#
# TORCH_CUDA_ARCH_LIST, as torch's own extensions read it: "8.0 9.0+PTX" or "8.0;9.0+PTX".
set(ADE_CUDA_ARCHS "8.0;9.0+PTX")
if(NOT "$ENV{TORCH_CUDA_ARCH_LIST}" STREQUAL "")
  string(REGEX REPLACE "[ ,]+" ";" ADE_CUDA_ARCHS "$ENV{TORCH_CUDA_ARCH_LIST}")
endif()
set(ADE_GENCODE "")
foreach(arch IN LISTS ADE_CUDA_ARCHS)
  if(NOT arch MATCHES "^([0-9]+)\\.([0-9]+)([af]?)(\\+PTX)?$")
    message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST: '${arch}' is not of the form 8.0, 9.0a or 9.0+PTX")
  endif()
  set(number ${CMAKE_MATCH_1}${CMAKE_MATCH_2}${CMAKE_MATCH_3})
  set(ptx "${CMAKE_MATCH_4}")
  list(APPEND ADE_GENCODE -gencode=arch=compute_${number},code=sm_${number})
  if(ptx)
    list(APPEND ADE_GENCODE -gencode=arch=compute_${number},code=compute_${number})
  endif()
endforeach()
if(ADE_PRINT) # cmake -DADE_PRINT=ON -P cmake/cuda_archs.cmake
  string(REPLACE ";" "\n" lines "${ADE_GENCODE}")
  message("${lines}")
endif()
