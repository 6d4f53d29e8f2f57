# examples/NAME.cpp is a program each; examples/norma/ is one, the installed program norma. All that
# takes time is in the library: their own code is compiled for a quick build.
file(GLOB norma_examples CONFIGURE_DEPENDS examples/*.cpp)
foreach(source ${norma_examples})
  cmake_path(GET source STEM name)
  add_executable(example_${name} ${source})
  set_target_properties(example_${name} PROPERTIES
    OUTPUT_NAME ${name} RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/examples)
  target_compile_options(example_${name} PRIVATE $<$<CONFIG:Release>:-Og>)
  target_link_libraries(example_${name} PRIVATE norma::norma)
endforeach()

file(GLOB norma_program_sources CONFIGURE_DEPENDS examples/norma/*.cpp)
if(norma_program_sources)
  find_package(CLI11 2.1 REQUIRED)
  add_executable(norma_program ${norma_program_sources})
  set_target_properties(norma_program PROPERTIES
    OUTPUT_NAME norma RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR})
  target_compile_options(norma_program PRIVATE $<$<CONFIG:Release>:-Og>)
  target_link_libraries(norma_program PRIVATE
    norma::norma CLI11::CLI11 nlohmann_json::nlohmann_json)
  norma_unite(norma_program 8)
endif()
