# What a builder may choose. A project that adds norma as a folder gets the library alone.
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)

set(default_arch "")
if(PROJECT_IS_TOP_LEVEL)
  set(default_arch native)
  set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
  if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
  endif()
endif()

set(NORMA_ARCH "${default_arch}" CACHE STRING
  "Processor to build for, as -march= takes it: native, x86-64-v3, …; empty is the compiler's own choice")
set(NORMA_BLAS "" CACHE STRING "Matrix products by: openblas; empty is Eigen")
set(NORMA_CUDA OFF CACHE STRING "Kernels for NVIDIA GPUs: ON, OFF or AUTO (where nvcc >= 12.8 is found)")
set(NORMA_SANITIZE "" CACHE STRING "Sanitizers, as -fsanitize= takes them: address,undefined or thread")
option(NORMA_WERROR "Treat warnings as errors (CI does)" OFF)
option(NORMA_TESTS "Build the tests" ${PROJECT_IS_TOP_LEVEL})
option(NORMA_BENCH "Build the benchmarks" ${PROJECT_IS_TOP_LEVEL})
option(NORMA_EXAMPLES "Build the examples and the program norma" ${PROJECT_IS_TOP_LEVEL})

if(NOT NORMA_BLAS MATCHES "^(openblas|)$")
  message(FATAL_ERROR "NORMA_BLAS: must be openblas or empty, but is ${NORMA_BLAS}")
endif()
