#pragma once

#include <cstdint>
#include <type_traits>

#include "norma/core/cuda/launch.cuh"
#include "norma/core/cuda/mma.cuh"
#include "norma/core/cuda/tma.cuh"

namespace norma {

// What Hopper's kernels of one shape share: a block is three warpgroups, of which the first loads,
// by one thread and the copy engine, through a ring of stages, and the others compute.

inline constexpr int kGroup = 128;  // threads of a warpgroup
inline constexpr int kHopperThreads = 3 * kGroup, kTileRows = 128, kComputingWarps = 8;

/// This thread's warpgroup, by a shuffle from which the compiler knows that a warp agrees on it: it
/// runs products one by one where it thinks that lanes may part.
__device__ __forceinline__ int group_of_block() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kGroup, 0);
}

/// A place in a ring of kStages buffers, and the parity of its phase.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
  __device__ void skip(int count) {
    for (int i = 0; i < count; ++i) next();
  }
};

template <int kStages>
struct Barriers {
  SharedBarrier full[kStages], empty[kStages];
  __device__ void init(int loaders, int readers = kComputingWarps) {
    for (int s = 0; s < kStages; ++s) full[s].init(loaders), empty[s].init(readers);
  }
  /// The loader's side: until the stage is free.
  __device__ SharedBarrier& acquire(const Ring<kStages>& at) {
    empty[at.stage].wait(at.parity ^ 1);
    return full[at.stage];
  }
  __device__ void wait(const Ring<kStages>& at) { full[at.stage].wait(at.parity); }
  /// Each computing warp's word that it has read the stage.
  __device__ void release(const Ring<kStages>& at) {
    if (threadIdx.x % kWarpSize == 0) empty[at.stage].arrive();
  }
};

/// Lane q of four gets word q of each of their arrays, in the lanes' order.
__device__ __forceinline__ void transpose_quad(uint32_t (&w)[4]) {
  const int lane = threadIdx.x;
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
    const bool upper = lane & step;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & step) continue;
      const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? w[i] : w[i + step], step);
      if (upper)
        w[i] = got;
      else
        w[i + step] = got;
    }
  }
}

/// Shared memory from the first multiple of 1024 bytes, which the swizzle counts from.
template <class Shared>
__device__ Shared& shared_memory() {
  extern __shared__ unsigned char memory[];
  const uint32_t off = (1024 - shared_address(memory) % 1024) % 1024;
  return *reinterpret_cast<Shared*>(memory + off);
}
template <class Shared>
constexpr size_t kSharedBytes = sizeof(Shared) + 1024;

}  // namespace norma
