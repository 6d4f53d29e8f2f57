# Kernels for NVIDIA GPUs, where there are any and nvcc is new enough. Says what it found.
file(GLOB norma_cuda_sources CONFIGURE_DEPENDS
  core/*.cu core/*/*.cu ops/*.cu ops/*/*.cu nn/*.cu nn/*/*.cu)
set(NORMA_WITH_CUDA OFF)
set(reason "NORMA_CUDA is OFF")
if(NORMA_CUDA)
  find_program(NORMA_NVCC nvcc HINTS ENV CUDA_PATH PATHS /usr/local/cuda/bin)
  set(nvcc_version 0)
  if(NORMA_NVCC)
    execute_process(COMMAND ${NORMA_NVCC} --version OUTPUT_VARIABLE nvcc_says)
    string(REGEX MATCH "release ([0-9.]+)" nvcc_release "${nvcc_says}")
    set(nvcc_version ${CMAKE_MATCH_1})
  endif()
  if(NOT NORMA_NVCC)
    set(reason "no nvcc found")
  elseif(nvcc_version VERSION_LESS 12.8)
    set(reason "nvcc ${nvcc_version} (${NORMA_NVCC}) is older than 12.8")
  elseif(NOT norma_cuda_sources)
    set(reason "nvcc ${nvcc_version} (${NORMA_NVCC}) is there, but no kernel for it yet")
  else()
    set(NORMA_WITH_CUDA ON)
  endif()
endif()

if(NORMA_WITH_CUDA)
  message(STATUS "norma: built for the CPU and CUDA, by nvcc ${nvcc_version} (${NORMA_NVCC})")
  set(CMAKE_CUDA_COMPILER ${NORMA_NVCC})
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    # sm_80 is compiled only; 90 is the PTX for newer GPUs, of which the same pass of the compiler
    # makes code for Hopper.
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
  endif()
  # A newer GPU's kernels may start before the one before them has ended, which code for older ones
  # does not wait for: no newer GPU may run it.
  if(CMAKE_CUDA_ARCHITECTURES MATCHES "(^|;)([78][0-9])(-virtual)?(;|$)")
    message(FATAL_ERROR "norma: CMAKE_CUDA_ARCHITECTURES must name GPUs older than 90 as "
      "${CMAKE_MATCH_2}-real, but is ${CMAKE_CUDA_ARCHITECTURES}")
  endif()
  # Some kernels are for some GPUs alone, and are compiled for no other: *_sm90_cuda.cu need clusters
  # and bulk copies, which Hopper and newer GPUs have, *_hopper_cuda.cu wgmma and setmaxnreg, which
  # only sm_90a has. Who calls them has looked at the GPU first.
  set(norma_sm90_architectures ${CMAKE_CUDA_ARCHITECTURES})
  set(norma_hopper_architectures ${CMAKE_CUDA_ARCHITECTURES})
  if(CMAKE_CUDA_ARCHITECTURES MATCHES "(^|;)(90|[a-z])")
    set(norma_hopper_architectures 90a-real)
  endif()
  if(CMAKE_CUDA_ARCHITECTURES MATCHES "(^|;)(9|1)[0-9]")
    list(FILTER norma_sm90_architectures EXCLUDE REGEX "^[78][0-9]")
  endif()
  foreach(part sm90 hopper)
    set(norma_${part}_sources ${norma_cuda_sources})
    list(FILTER norma_${part}_sources INCLUDE REGEX "_${part}_cuda\\.cu$")
    list(REMOVE_ITEM norma_cuda_sources ${norma_${part}_sources})
  endforeach()
  enable_language(CUDA)
  find_package(CUDAToolkit 12.8 REQUIRED)
  # CMake 3.25 does not know how this nvcc is asked for C++20.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  # nvcc's -O is the host's: there are launches, and no loops. Kernels are optimized anyhow.
  string(REPLACE "-O3" "-O1" CMAKE_CUDA_FLAGS_RELEASE "${CMAKE_CUDA_FLAGS_RELEASE}")
  add_compile_options(
    "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-Xcompiler=-Wall>")
  if(PROJECT_IS_TOP_LEVEL AND NORMA_CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${NORMA_CCACHE})
  endif()
elseif(NORMA_CUDA STREQUAL ON)
  message(FATAL_ERROR "norma: NORMA_CUDA is ON, but ${reason}")
else()
  set(norma_cuda_sources "")
  message(STATUS "norma: built for the CPU; ${reason}")
endif()
