# Headers alone, used in .cpp files alone: nothing of them may reach a consumer's link line. Linking
# a static library's private parts would name them in its export set, so only their headers are taken.
function(norma_use_headers_of target)
  foreach(part norma norma_loops)
    target_include_directories(${part} SYSTEM PRIVATE
      $<TARGET_PROPERTY:${target},INTERFACE_INCLUDE_DIRECTORIES>)
    target_compile_definitions(${part} PRIVATE
      $<TARGET_PROPERTY:${target},INTERFACE_COMPILE_DEFINITIONS>)
  endforeach()
endfunction()

find_package(Eigen3 3.4 REQUIRED NO_MODULE)
find_package(fmt 9 REQUIRED)
find_package(nlohmann_json 3.11 REQUIRED)
norma_use_headers_of(Eigen3::Eigen)
norma_use_headers_of(fmt::fmt-header-only)
norma_use_headers_of(nlohmann_json::nlohmann_json)
# Threads are core/parallel.h's: Eigen must not start its own.
foreach(part norma norma_loops)  # alike, or a precompiled header is not theirs
  target_compile_definitions(${part} PRIVATE EIGEN_DONT_PARALLELIZE)
endforeach()

if(NORMA_BLAS STREQUAL openblas)
  set(BLA_VENDOR OpenBLAS)
  find_package(BLAS REQUIRED)
  target_link_libraries(norma PRIVATE BLAS::BLAS)
  foreach(part norma norma_loops)
    target_compile_definitions(${part} PRIVATE NORMA_USE_OPENBLAS)
  endforeach()
endif()
