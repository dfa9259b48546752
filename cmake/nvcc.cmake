# Compiles CUDA kernels by calling nvcc directly: no GPU, driver or CUDA build of torch is needed, and nvcc may be a
# wrapper script, so the toolkit's place is asked of nvcc itself.

find_program(ADE_NVCC nvcc HINTS ENV CUDA_HOME PATH_SUFFIXES bin)
if(NOT ADE_NVCC)
  message(FATAL_ERROR "ADE_CUDA is ON, but there is no nvcc on the PATH or in CUDA_HOME/bin: install the CUDA toolkit")
endif()

execute_process(COMMAND ${ADE_NVCC} --dryrun -x cu -c /dev/null -o /dev/null ERROR_VARIABLE dryrun OUTPUT_QUIET)
string(REGEX MATCH "TOP=([^\n]*)" _ "${dryrun}")
get_filename_component(ADE_CUDA_ROOT "${CMAKE_MATCH_1}" REALPATH)
find_library(ADE_CUDART cudart_static PATHS ${ADE_CUDA_ROOT}
             PATH_SUFFIXES lib64 lib targets/${CMAKE_SYSTEM_PROCESSOR}-linux/lib NO_DEFAULT_PATH)
if(NOT ADE_CUDART)
  message(FATAL_ERROR "no libcudart_static.a under ${ADE_CUDA_ROOT}, which nvcc (${ADE_NVCC}) names as its toolkit")
endif()
set(ADE_LINK_ARGS "${ADE_CUDART} -ldl -lrt -lpthread")

execute_process(COMMAND ${ADE_NVCC} --version OUTPUT_VARIABLE version)
string(REGEX MATCH "release ([0-9.]+)" _ "${version}")
set(ADE_CUDA_VERSION ${CMAKE_MATCH_1})

include(cmake/cuda_archs.cmake)

set(ADE_NVCC_FLAGS -O3 -std=c++17 -Xcompiler=-fPIC,-fvisibility=hidden -I${CMAKE_CURRENT_SOURCE_DIR}/csrc)

# Adds the objects of these .cu files to a target.
function(ade_add_cuda_kernels target)
  foreach(source IN LISTS ARGN)
    get_filename_component(stem ${source} NAME_WE)
    set(object ${CMAKE_BINARY_DIR}/cuda/${stem}.o)
    add_custom_command(
      OUTPUT ${object}
      COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/cuda
      COMMAND ${ADE_NVCC} ${ADE_NVCC_FLAGS} ${ADE_GENCODE} -MD -MF ${object}.d -c
              ${CMAKE_CURRENT_SOURCE_DIR}/${source} -o ${object}
      DEPENDS ${source}
      DEPFILE ${object}.d
      COMMENT "nvcc ${source}"
      VERBATIM)
    target_sources(${target} PRIVATE ${object})
    set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
  endforeach()
endfunction()
