# tests/fuzz/NAME.cpp is a fuzzer each: build/fuzz/fuzz/NAME tests/fuzz/corpus/NAME. The sanitizers
# come by NORMA_SANITIZE, which names fuzzer-no-link beside them.
file(GLOB norma_fuzzers CONFIGURE_DEPENDS tests/fuzz/*.cpp)
foreach(source ${norma_fuzzers})
  cmake_path(GET source STEM name)
  add_executable(fuzz_${name} ${source})
  set_target_properties(fuzz_${name} PROPERTIES
    OUTPUT_NAME ${name} RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/fuzz)
  target_link_libraries(fuzz_${name} PRIVATE norma::norma)
  target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
endforeach()
