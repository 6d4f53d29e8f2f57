#pragma once

#include <cstdint>

namespace norma::detail {

/// Bytes of the last cache that one core can fill: results of ops that move more leave the caches
/// anyway, and writing them past the caches saves reading their lines first.
int64_t last_cache_bytes();

}  // namespace norma::detail
