#include "norma/core/cache.h"

#include <fstream>

namespace norma::detail {

int64_t last_cache_bytes() {
  static const int64_t bytes = [] {
    // Not sysconf: glibc 2.36 takes an AMD processor's caches for one, ten times as large.
    std::ifstream size("/sys/devices/system/cpu/cpu0/cache/index3/size");
    int64_t kib = 0;
    return size >> kib && kib > 0 ? kib << 10 : int64_t{32} << 20;
  }();
  return bytes;
}

}  // namespace norma::detail
