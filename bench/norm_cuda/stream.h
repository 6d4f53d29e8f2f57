#pragma once

#include <cstdint>

#include "norma/core/device.h"

namespace norma {

/// Tensors of n elements that a kernel only reads and only writes, without arithmetic.
struct Streams {
  static constexpr int kMost = 4;
  struct One {
    void* data = nullptr;
    int element_bytes = 0;  ///< 2, or 4
  };
  One in[kMost], out[kMost];
  int ins = 0, outs = 0;
  int64_t n = 0;  ///< a multiple of 8
};
/// What a norm's reads and writes cost by themselves: an op that reads more than it writes is
/// faster than a copy of as many bytes.
void stream_through(const Cuda& on, const Streams& streams);

}  // namespace norma
