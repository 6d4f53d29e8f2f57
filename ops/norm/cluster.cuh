#pragma once

#include <cstdint>

#include "norma/core/cuda/barrier.cuh"
#include "norma/core/cuda/cluster.cuh"
#include "norma/core/cuda/launch.cuh"
#include "norma/ops/norm/plans.h"

namespace norma::norm_cuda {

// Blocks of a cluster and what they write into each other's shared memory. Only where a launch
// asked for clusters (sm_90 and newer); elsewhere a cluster is one block.

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
inline constexpr bool kHasClusters = true;
#else
inline constexpr bool kHasClusters = false;  // older GPUs are spared the compilation
#endif

/// Of this block's cluster, be it of one block, in the grid.
__device__ __forceinline__ uint32_t cluster_number() {
  uint32_t r = blockIdx.x;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%clusterid.x;" : "=r"(r));
#endif
  return r;
}
__device__ __forceinline__ void store_in_cluster(uint32_t address, float v) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(v) : "memory");
#endif
}
__device__ __forceinline__ void store_in_cluster(uint32_t address, double v) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.f64 [%0], %1;" ::"r"(address), "d"(v) : "memory");
#endif
}
/// All threads of the cluster wait for one another, and see what they wrote.
__device__ __forceinline__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
#endif
}
/// The first of its two steps; cluster_wait() is the second.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
/// Two floats into block `rank`'s memory, whose barrier there counts their 8 bytes. Both by what
/// their addresses are in this block.
__device__ __forceinline__ void send_counted(uint32_t to, float2 v, BarrierAt there,
                                             uint32_t rank) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::
          "r"(address_in(to, rank)),
      "f"(v.x), "f"(v.y), "r"(address_in(there.at, rank))
      : "memory");
#endif
}

/// The same of one float.
__device__ __forceinline__ void send_counted(uint32_t to, float v, BarrierAt there, uint32_t rank) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(
          address_in(to, rank)),
      "f"(v), "r"(address_in(there.at, rank))
      : "memory");
#endif
}
__device__ __forceinline__ void send_counted(float2* to, float2 v, SharedBarrier* there,
                                             uint32_t rank) {
  send_counted(shared_address(to), v, BarrierAt{there->address()}, rank);
}

}  // namespace norma::norm_cuda
