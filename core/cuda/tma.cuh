#pragma once

#include <cuda.h>

#include <cstdint>

#include "norma/core/cuda/barrier.cuh"

namespace norma {

// What Hopper's copy engine takes of a tensor that a map describes, and how warpgroups share a
// block.

__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(reinterpret_cast<uint64_t>(&map)) : "memory");
}

/// One thread asks for a box of a four-dimensional tensor, fastest dimension first; elements
/// outside of the tensor come as zeros. `done` gets the bytes.
__device__ __forceinline__ void copy_box(void* to, const CUtensorMap& map, SharedBarrier& done,
                                         int c0, int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5, %6}], [%2];\n" ::"r"(shared_address(to)),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(done.address()), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

/// A barrier of `threads` threads of the block, by number; 0 is __syncthreads().
__device__ __forceinline__ void named_sync(int number, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(number), "r"(threads) : "memory");
}
/// Counts for it without waiting.
__device__ __forceinline__ void named_arrive(int number, int threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(number), "r"(threads) : "memory");
}

/// This warpgroup's registers a thread from here on (a multiple of 8); all its warps call it.
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

}  // namespace norma
