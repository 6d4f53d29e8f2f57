# Flags for everything in this project; none of them reaches a consumer.
if((CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 12) OR
   (CMAKE_CXX_COMPILER_ID STREQUAL Clang AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 14))
  message(FATAL_ERROR "norma: the compiler must be g++ 12 or clang 14, or later, but is "
    "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}; choose one with -DCMAKE_CXX_COMPILER=")
endif()

# Release is CMake's own -O3 -DNDEBUG: at -O2, g++ 12 vectorizes only loops whose trip count it can
# divide without a remainder, and rows have any length.
function(norma_cxx_options)
  foreach(flag ${ARGN})
    add_compile_options($<$<COMPILE_LANGUAGE:CXX>:${flag}>)
  endforeach()
endfunction()

norma_cxx_options(-Wall -Wextra -Wshadow)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # g++ 12 warns about its own AVX-512 header (GCC bug 105593); ASan and clang look at the rest.
  norma_cxx_options(-Wno-uninitialized -Wno-maybe-uninitialized)
elseif(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  # g++ 13 takes a buffer that a function fills for one without values, and what a short-lived
  # reference such as OptionsRef refers to for as short-lived.
  norma_cxx_options(-Wno-maybe-uninitialized -Wno-dangling-reference)
endif()
# Never -ffast-math: NaN, Inf and the order of sums are promises. These two give up only errno and
# floating-point traps, which nobody reads, so that loops with sqrt or a comparison vectorize.
norma_cxx_options(-fno-math-errno -fno-trapping-math)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND NOT CMAKE_DISABLE_PRECOMPILE_HEADERS)
  # A precompiled header is 60 to 120 MB of g++'s heap already, which it would search for garbage
  # again and again: a fourteenth of a test's time.
  norma_cxx_options(--param=ggc-min-heapsize=524288)
endif()
if(NORMA_ARCH)
  norma_cxx_options(-march=${NORMA_ARCH})
endif()
if(NORMA_WERROR)
  norma_cxx_options(-Werror)
endif()
if(NORMA_SANITIZE)
  norma_cxx_options(-fsanitize=${NORMA_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${NORMA_SANITIZE})
endif()

if(PROJECT_IS_TOP_LEVEL)
  find_program(NORMA_CCACHE ccache)
  if(NORMA_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
    # What includes a precompiled header is kept too, where ccache is told that it may.
    set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros ${NORMA_CCACHE})
    if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
      norma_cxx_options(-fpch-preprocess)
    endif()
  endif()
  find_program(NORMA_MOLD mold)
  if(NORMA_MOLD)
    add_link_options(-fuse-ld=mold)
  endif()
endif()
