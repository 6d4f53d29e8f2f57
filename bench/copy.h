#pragma once

#include <cstdint>
#include <cstring>

#include "norma/core/parallel.h"
#include "norma/ops/elementwise/lanes32_cpu.h"

namespace norma {

/// The two ways to copy on every thread; the better one is the bandwidth that norms are held
/// against. Both pointers aligned to 64 bytes.
inline void copy_by_memcpy(const std::byte* from, std::byte* to, int64_t bytes) {
  const Split parts = split(bytes, 1 << 18);
  parallel_for(parts.blocks, [&](int64_t p) {
    const int64_t first = parts.begin(p);
    std::memcpy(to + first, from + first, static_cast<size_t>(parts.end(p) - first));
  });
}
inline void copy_past_the_caches(const std::byte* from, std::byte* to, int64_t bytes) {
  const Split parts = split(bytes, 1 << 18);
  parallel_for(parts.blocks, [&](int64_t p) {
    for (int64_t i = parts.begin(p); i + 64 <= parts.end(p); i += 64)
      detail::stream_64_bytes(from + i, to + i);
    detail::end_streams();
  });
}

}  // namespace norma
