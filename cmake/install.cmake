# find_package(norma) gives norma::norma; a consumer needs Threads, and what it was built with beside.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/norma)

set(norma_more_dependencies "")
if(NORMA_BLAS STREQUAL openblas)
  string(APPEND norma_more_dependencies "set(BLA_VENDOR OpenBLAS)\nfind_dependency(BLAS)\n")
endif()
if(NORMA_WITH_CUDA)
  string(APPEND norma_more_dependencies "find_dependency(CUDAToolkit)\n")
endif()
configure_package_config_file(cmake/norma-config.cmake.in norma-config.cmake
  INSTALL_DESTINATION ${package_folder})
# 0.x: a minor version may change the interface.
write_basic_package_version_file(norma-config-version.cmake COMPATIBILITY SameMinorVersion)

install(TARGETS norma EXPORT norma-targets)
install(EXPORT norma-targets NAMESPACE norma:: DESTINATION ${package_folder})
install(FILES ${PROJECT_BINARY_DIR}/norma-config.cmake
  ${PROJECT_BINARY_DIR}/norma-config-version.cmake DESTINATION ${package_folder})
install(FILES norma.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/norma)
foreach(folder core ops nn)
  if(IS_DIRECTORY ${PROJECT_SOURCE_DIR}/${folder})
    install(DIRECTORY ${folder} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/norma
      FILES_MATCHING PATTERN "*.h" PATTERN "*_cpu.h" EXCLUDE)
  endif()
endforeach()
foreach(paper LICENSE NOTICE)
  if(EXISTS ${PROJECT_SOURCE_DIR}/${paper})
    install(FILES ${paper} DESTINATION ${CMAKE_INSTALL_DOCDIR})
  endif()
endforeach()
if(TARGET norma_program)
  install(TARGETS norma_program)
endif()
