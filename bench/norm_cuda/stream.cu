#include "norm_cuda/stream.h"
#include "norma/core/cuda/launch.cuh"

namespace norma {
namespace {

constexpr int kThreads = 256, kTurns = 4, kUnit = 8;  // elements a thread takes at a time

__device__ __forceinline__ uint4 either(uint4 a, uint4 b) {
  return {a.x ^ b.x, a.y ^ b.y, a.z ^ b.z, a.w ^ b.w};
}

/// Every input goes into what every output gets, so that none is left out. Which element meets
/// which does not matter: a tensor of four-byte elements has two vectors where one of two bytes has
/// one.
template <int kIns>
__global__ void __launch_bounds__(kThreads) stream_kernel(Streams s) {
  const int64_t units = s.n / kUnit;
  const auto wide = [&](int64_t first_of_block, int half) {
    return 2 * first_of_block + half * kThreads + threadIdx.x;
  };
  const int64_t first = int64_t{blockIdx.x} * kThreads * kTurns;
  uint4 v[kTurns][2];
#pragma unroll
  for (int t = 0; t < kTurns; ++t) {
    const int64_t block = first + t * kThreads;
    v[t][0] = v[t][1] = uint4{0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kIns; ++i) {
      const auto* from = static_cast<const uint4*>(s.in[i].data);
      if (s.in[i].element_bytes == 2) {
        if (block + threadIdx.x < units)
          v[t][0] = either(v[t][0], __ldg(from + block + threadIdx.x));
      } else {
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (wide(block, half) < 2 * units)
            v[t][half] = either(v[t][half], __ldg(from + wide(block, half)));
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTurns; ++t) {
    const int64_t block = first + t * kThreads;
    for (int o = 0; o < s.outs; ++o) {
      auto* to = static_cast<uint4*>(s.out[o].data);
      if (s.out[o].element_bytes == 2) {
        if (block + threadIdx.x < units) to[block + threadIdx.x] = v[t][0];
      } else {
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (wide(block, half) < 2 * units) to[wide(block, half)] = v[t][half];
      }
    }
  }
}

}  // namespace

void stream_through(const Cuda& on, const Streams& s) {
  const LaunchShape shape{.grid = grid_for(ceil_div(s.n, int64_t{kUnit}), kThreads * kTurns),
                          .block = dim3(kThreads)};
  if (s.ins == 1) launch(on, shape, stream_kernel<1>, s);
  if (s.ins == 2) launch(on, shape, stream_kernel<2>, s);
  if (s.ins == 3) launch(on, shape, stream_kernel<3>, s);
  if (s.ins == 4) launch(on, shape, stream_kernel<4>, s);
}

}  // namespace norma
