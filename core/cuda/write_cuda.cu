#include <algorithm>
#include <cstring>

#include "norma/core/cuda/graph.h"
#include "norma/core/cuda/launch.cuh"

namespace norma::detail {
namespace {

// The values are arguments of the kernel: CUDA has read them when the launch returns, while a copy
// from pinned memory would race with the next call's values, and one from pageable memory waits.
struct Words {
  uint4 values[64];
};

__global__ void write_kernel(uint4* to, Words words) {
  to[threadIdx.x] = words.values[threadIdx.x];
}

}  // namespace

void cuda_write(void* to, const void* from, size_t bytes, Device device) {
  const Cuda on = cuda_stream(device);
  for (size_t first = 0; first < bytes; first += sizeof(Words)) {
    const size_t n = std::min(bytes - first, sizeof(Words));
    Words words{};
    std::memcpy(&words, static_cast<const std::byte*>(from) + first, n);
    launch(on, {.grid = 1, .block = static_cast<unsigned>(ceil_div(n, sizeof(uint4)))},
           write_kernel, reinterpret_cast<uint4*>(static_cast<std::byte*>(to) + first), words);
  }
}

}  // namespace norma::detail
