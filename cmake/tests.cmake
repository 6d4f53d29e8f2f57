# One program a top folder: norma_tests_core, norma_tests_ops, norma_tests_nn. What tests share is
# tests/testing/, included as "testing/…".
find_package(GTest REQUIRED)

file(GLOB testing_sources CONFIGURE_DEPENDS tests/testing/*.cpp)
list(FILTER testing_sources EXCLUDE REGEX "/main\\.cpp$")
add_library(norma_testing STATIC ${testing_sources})
target_include_directories(norma_testing PUBLIC tests)
target_compile_definitions(norma_testing PUBLIC
  NORMA_GOLDEN_DIR="${PROJECT_SOURCE_DIR}/tests/golden")
target_link_libraries(norma_testing PUBLIC norma::norma GTest::gmock GTest::gtest)
# A test's own code is seldom what takes its time. Compiled like the library, and with gmock read in
# each file, tests took twice as long to build.
target_compile_options(norma_testing PUBLIC $<$<CONFIG:Release>:-Og>)
target_precompile_headers(norma_testing PRIVATE <gmock/gmock.h> <norma/core/op.h>)

# A process for each of thousands of cases would take ctest minutes; four shards fill any machine.
set(shards 4)
math(EXPR last_shard "${shards} - 1")
foreach(folder core ops nn)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS tests/${folder}/*.cpp)
  if(NOT sources)
    continue()
  endif()
  set(program norma_tests_${folder})
  add_executable(${program} ${sources} tests/testing/main.cpp)
  target_link_libraries(${program} PRIVATE norma_testing)
  target_precompile_headers(${program} REUSE_FROM norma_testing)
  norma_unite(${program} 5)
  foreach(shard RANGE ${last_shard})
    math(EXPR number "${shard} + 1")
    add_test(NAME ${folder}.${number}of${shards} COMMAND ${program})
    set_tests_properties(${folder}.${number}of${shards} PROPERTIES TIMEOUT 900
      ENVIRONMENT "GTEST_TOTAL_SHARDS=${shards};GTEST_SHARD_INDEX=${shard};GTEST_BRIEF=1")
  endforeach()
  if(NORMA_WITH_CUDA)
    # The same tests with every tensor on the GPU; skipped, visibly, where there is none.
    add_test(NAME ${folder}.cuda COMMAND ${program})
    set_tests_properties(${folder}.cuda PROPERTIES TIMEOUT 1800 SKIP_RETURN_CODE 77
      ENVIRONMENT "NORMA_TEST_DEVICE=cuda;GTEST_BRIEF=1")
  endif()
endforeach()

# The program as its user meets it: a process, signals, its files.
if(TARGET norma_program)
  add_test(NAME program.interrupt
    COMMAND ${PROJECT_SOURCE_DIR}/tests/program/interrupt.sh $<TARGET_FILE:norma_program>)
  add_test(NAME program.errors
    COMMAND ${PROJECT_SOURCE_DIR}/tests/program/errors.sh $<TARGET_FILE:norma_program>)
  add_test(NAME program.best
    COMMAND ${PROJECT_SOURCE_DIR}/tests/program/best.sh $<TARGET_FILE:norma_program>)
  # Its checkpoints and the Python package safetensors; skipped, and shown so, without the package.
  find_program(NORMA_PYTHON python3)
  if(NORMA_PYTHON)
    add_test(NAME program.safetensors_package COMMAND ${NORMA_PYTHON}
      ${PROJECT_SOURCE_DIR}/tests/program/safetensors_package.py $<TARGET_FILE:norma_program>)
    set_tests_properties(program.safetensors_package PROPERTIES SKIP_RETURN_CODE 77)
  endif()
  set_tests_properties(program.interrupt PROPERTIES TIMEOUT 600)
endif()

# Each header compiles alone and may be included twice: `--target norma_headers` (CI does).
file(GLOB headers CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}
  norma.h core/*.h core/*/*.h ops/*.h ops/*/*.h nn/*.h nn/*/*.h)
list(FILTER headers EXCLUDE REGEX "_cpu\\.h$")  # for kernels alone: they need Eigen
set(header_sources "")
foreach(header ${headers})
  set(source ${PROJECT_BINARY_DIR}/headers/${header}.cpp)
  file(CONFIGURE OUTPUT ${source} CONTENT
    "#include \"norma/@header@\"\n#include \"norma/@header@\"\n" @ONLY)
  list(APPEND header_sources ${source})
endforeach()
add_library(norma_headers OBJECT EXCLUDE_FROM_ALL ${header_sources})
target_compile_options(norma_headers PRIVATE -O0)
target_link_libraries(norma_headers PRIVATE norma::norma)
