# One program a top folder: norma_tests_core, norma_tests_ops, norma_tests_nn. What tests share is
# tests/testing/, included as "testing/…".
find_package(GTest REQUIRED)

file(GLOB testing_sources CONFIGURE_DEPENDS tests/testing/*.cpp)
if(testing_sources)
  add_library(norma_testing STATIC ${testing_sources})
  set(scope PUBLIC)
else()
  add_library(norma_testing INTERFACE)
  set(scope INTERFACE)
endif()
target_include_directories(norma_testing ${scope} tests)
target_compile_definitions(norma_testing ${scope}
  NORMA_GOLDEN_DIR="${PROJECT_SOURCE_DIR}/tests/golden")
target_link_libraries(norma_testing ${scope} norma::norma GTest::gmock GTest::gtest)

# A process for each of thousands of cases would take ctest minutes; four shards fill any machine.
set(shards 4)
math(EXPR last_shard "${shards} - 1")
foreach(folder core ops nn)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS tests/${folder}/*.cpp)
  if(NOT sources)
    continue()
  endif()
  set(program norma_tests_${folder})
  add_executable(${program} ${sources})
  target_link_libraries(${program} PRIVATE norma_testing GTest::gtest_main)
  foreach(shard RANGE ${last_shard})
    math(EXPR number "${shard} + 1")
    add_test(NAME ${folder}.${number}of${shards} COMMAND ${program})
    set_tests_properties(${folder}.${number}of${shards} PROPERTIES TIMEOUT 900
      ENVIRONMENT "GTEST_TOTAL_SHARDS=${shards};GTEST_SHARD_INDEX=${shard};GTEST_BRIEF=1")
  endforeach()
endforeach()

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
