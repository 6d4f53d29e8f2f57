# bench/NAME.cpp is a program each: build/cpu/bench/NAME. One with a main of its own keeps it.
file(GLOB norma_benchmarks CONFIGURE_DEPENDS bench/*.cpp)
if(NOT NORMA_WITH_CUDA)
  list(FILTER norma_benchmarks EXCLUDE REGEX "_cuda\\.cpp$")
endif()
if(norma_benchmarks)
  find_package(benchmark REQUIRED)
endif()
foreach(source ${norma_benchmarks})
  cmake_path(GET source STEM name)
  add_executable(bench_${name} ${source})
  set_target_properties(bench_${name} PROPERTIES
    OUTPUT_NAME ${name} RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bench)
  target_link_libraries(bench_${name} PRIVATE
    norma::norma benchmark::benchmark benchmark::benchmark_main)
endforeach()
