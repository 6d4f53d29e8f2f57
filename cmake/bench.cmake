# bench/NAME.cpp is a program each: build/cpu/bench/NAME. One with a main of its own keeps it; kernels
# of its own are in bench/NAME/. A build without a target leaves them out: `--target norma_benchmarks`
# makes them (`./dev bench` and CI do).
file(GLOB norma_benchmarks CONFIGURE_DEPENDS bench/*.cpp)
if(NOT NORMA_WITH_CUDA)
  list(FILTER norma_benchmarks EXCLUDE REGEX "_cuda\\.cpp$")
endif()
if(norma_benchmarks)
  find_package(benchmark REQUIRED)
endif()
add_custom_target(norma_benchmarks)
foreach(source ${norma_benchmarks})
  cmake_path(GET source STEM name)
  file(GLOB kernels CONFIGURE_DEPENDS bench/${name}/*.cu)
  add_executable(bench_${name} EXCLUDE_FROM_ALL ${source} ${kernels})
  add_dependencies(norma_benchmarks bench_${name})
  set_target_properties(bench_${name} PROPERTIES
    OUTPUT_NAME ${name} RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bench)
  target_include_directories(bench_${name} PRIVATE bench)
  target_link_libraries(bench_${name} PRIVATE
    norma::norma benchmark::benchmark benchmark::benchmark_main)
endforeach()
