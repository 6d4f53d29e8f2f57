#pragma once

#include <cuda.h>

#include <cstdint>

#include "norma/core/cuda/barrier.cuh"

namespace norma {

// What the blocks of a cluster tell one another, and what the copy engine does for several of them.
// Only where a launch asked for clusters (sm_90 and newer); elsewhere a cluster is one block.

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t r = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
#endif
  return r;
}
/// The first step of a meeting of the cluster's threads, where others need to see no more than
/// barriers, which publish_barriers() has published: a release waits for what this block has on its
/// way to all of the GPU (MEMBAR.ALL.GPU).
__device__ __forceinline__ void cluster_arrive_relaxed() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
/// Arrives at block `rank`'s barrier, by what it is called in this block: what this thread has read
/// may be overwritten. Ordered within the block alone, since a release for the whole cluster is a
/// MEMBAR.ALL.GPU too: in a loop over tiles it took as long as the products.
__device__ __forceinline__ void arrive_in(SharedBarrier& barrier, uint32_t rank) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier.address()),
      "r"(rank)
      : "memory");
#endif
}
/// What `at`, an address in this block's shared memory, is called in block `rank`.
__device__ __forceinline__ uint32_t address_in(uint32_t at, uint32_t rank) {
  uint32_t there = at;
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
#endif
  return there;
}
/// Two floats to an address in a block of the cluster, whose barrier at `done` gets the bytes when
/// they are there: no thread waits, and nothing else need be seen by the others.
__device__ __forceinline__ void send(uint32_t to, float2 v, uint32_t done) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::
          "r"(to),
      "f"(v.x), "f"(v.y), "r"(done)
      : "memory");
#endif
}
/// copy_box (tma.cuh) into the same place of each block of `ranks`, a bit each, whose barrier
/// `done` gets the bytes.
__device__ __forceinline__ void copy_box_to(uint16_t ranks, void* to, const CUtensorMap& map,
                                            SharedBarrier& done, int c0, int c1) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%4, %5, %6, %6}], [%2], %3;\n" ::"r"(shared_address(to)),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(done.address()), "h"(ranks), "r"(c0), "r"(c1),
      "r"(0)
      : "memory");
#endif
}

}  // namespace norma
