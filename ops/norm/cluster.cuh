#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <tuple>

#include "norma/core/cuda/launch.cuh"
#include "norma/ops/norm/plans.h"

namespace norma::norm_cuda {

// Blocks of a cluster and what they write into each other's shared memory. Only where a launch
// asked for clusters (sm_90 and newer); elsewhere a cluster is one block.

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t r = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
#endif
  return r;
}
/// The address that `address` of this block's shared memory has in block `rank`.
__device__ __forceinline__ uint32_t address_in(uint32_t address, uint32_t rank) {
  uint32_t r = address;
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(address), "r"(rank));
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

// Barriers in shared memory that count arrivals and bytes, and copies that report to them.

struct Barrier {
  uint64_t word;

  __device__ __forceinline__ void init(int arrivals) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)),
                 "r"(arrivals)
                 : "memory");
#endif
  }
  __device__ __forceinline__ void arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .b64 t;\nmbarrier.arrive.shared::cta.b64 t, [%0];\n}" ::"r"(shared_address(this))
        : "memory");
#endif
  }
  /// Arrives, and lets the phase end only after so many bytes more.
  __device__ __forceinline__ void arrive_expecting(uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n.reg .b64 t;\nmbarrier.arrive.expect_tx.shared::cta.b64 t, [%0], %1;\n}" ::"r"(
                     shared_address(this)),
                 "r"(bytes)
                 : "memory");
#endif
  }
  /// Until the phase of that parity has ended.
  __device__ __forceinline__ void wait(uint32_t parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred p;\nagain_%=:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
        "@!p bra again_%=;\n}" ::"r"(shared_address(this)),
        "r"(parity)
        : "memory");
#endif
  }
  __device__ __forceinline__ void wait_in_cluster(uint32_t parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred p;\nagain_%=:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n"
        "@!p bra again_%=;\n}" ::"r"(shared_address(this)),
        "r"(parity)
        : "memory");
#endif
  }
};
__device__ __forceinline__ void barriers_are_visible() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
/// Copies bytes, a multiple of 16 between addresses on 16, which `full` counts.
__device__ __forceinline__ void bulk_copy(void* to, const void* from, uint32_t bytes,
                                          Barrier& full) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(&full))
      : "memory");
#endif
}
/// Two floats into block `rank`'s memory, whose barrier there counts their 8 bytes.
__device__ __forceinline__ void send_counted(float2* to, float2 v, Barrier* there, uint32_t rank) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::
          "r"(address_in(shared_address(to), rank)),
      "f"(v.x), "f"(v.y), "r"(address_in(shared_address(there), rank))
      : "memory");
#endif
}

/// Blocks of this shape that run at a time, in whole clusters. Asks CUDA once a shape.
inline int resident_clusters(const Cuda& on, const void* kernel, int threads, size_t shared,
                             int cluster) {
  static std::mutex mutex;
  static auto* known = new std::map<std::tuple<int, const void*, int, size_t, int>, int>;
  const std::lock_guard lock(mutex);
  int& count = (*known)[{on.device.index, kernel, threads, shared, cluster}];
  if (count > 0) return as_pretended(on, count);
  detail::allow_shared_memory(kernel, shared);
  if (cluster > 8) detail::allow_large_clusters(kernel);
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(cluster));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.attrs = &attribute;
  config.numAttrs = 1;
  detail::check(cudaOccupancyMaxActiveClusters(&count, kernel, &config),
                "count the clusters that fit");
  return as_pretended(on, count);
}

}  // namespace norma::norm_cuda
