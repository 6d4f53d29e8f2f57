#include "norma/core/processor.h"

#include <unistd.h>

// Compiled for the oldest processor; see cmake/processor.cmake. Nothing inline from the standard
// library here: the linker might keep another file's copy of it, made of newer instructions.
namespace norma::detail {
namespace {

// Those that both g++ and clang can ask for; AVX2 machines without F16C or LZCNT were never made.
constexpr const char* kProcessorFeatures[] = {
    "sse4.2",  "popcnt",   "avx",      "avx2",     "fma",      "bmi",        "bmi2",
    "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni", "avx512vbmi"};

struct Text {
  char* out;
  size_t size;
  size_t length = 0;
  void add(const char* text) {
    while (*text && length < size) out[length++] = *text++;
  }
};

}  // namespace

ProcessorFeatures features_present() {
  ProcessorFeatures present = ~ProcessorFeatures{0};
#if defined(__x86_64__)
  __builtin_cpu_init();
  int bit = 0;
  const auto note = [&](int has) {
    if (!has) present &= ~(ProcessorFeatures{1} << bit);
    ++bit;
  };
  note(__builtin_cpu_supports("sse4.2"));
  note(__builtin_cpu_supports("popcnt"));
  note(__builtin_cpu_supports("avx"));
  note(__builtin_cpu_supports("avx2"));
  note(__builtin_cpu_supports("fma"));
  note(__builtin_cpu_supports("bmi"));
  note(__builtin_cpu_supports("bmi2"));
  note(__builtin_cpu_supports("avx512f"));
  note(__builtin_cpu_supports("avx512bw"));
  note(__builtin_cpu_supports("avx512cd"));
  note(__builtin_cpu_supports("avx512dq"));
  note(__builtin_cpu_supports("avx512vl"));
  note(__builtin_cpu_supports("avx512vnni"));
  note(__builtin_cpu_supports("avx512vbmi"));
#endif
  return present;
}

size_t write_processor_error(char* out, size_t size, ProcessorFeatures missing) {
  Text text{out, size};
  text.add("norma: the processor must have what norma was built for, but lacks");
  int bit = 0;
  for (const char* feature : kProcessorFeatures) {
    if (missing >> bit++ & 1) {
      text.add(" ");
      text.add(feature);
    }
  }
  text.add("; build norma on this machine, or with -DNORMA_ARCH=x86-64\n");
  return text.length;
}

}  // namespace norma::detail

// Priority 101 is the first that programs may use: before any static object's constructor.
extern "C" __attribute__((constructor(101))) void norma_require_processor() {
  using namespace norma::detail;
  const ProcessorFeatures missing = features_built_for & ~features_present();
  if (!missing) return;
  char message[512];
  const size_t length = write_processor_error(message, sizeof message, missing);
  // Where even stderr is closed, the exit status must do.
  if (write(STDERR_FILENO, message, length) < 0) _exit(127);
  _exit(126);
}
