# A program built for a newer processor than it runs on says so before anything else runs. The check
# itself must run anywhere, and a static library drops what nothing calls, so the linker is told.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set_source_files_properties(core/processor.cpp PROPERTIES
    COMPILE_OPTIONS "-march=x86-64;-fno-sanitize=all" SKIP_PRECOMPILE_HEADERS ON)
  target_link_options(norma INTERFACE LINKER:-u,norma_require_processor)
endif()
