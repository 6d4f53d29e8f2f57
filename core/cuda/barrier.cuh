#pragma once

#include <cstdint>

namespace norma {

// Barriers in shared memory by which Hopper's copy engine, and the blocks of a cluster, say that
// they are done. Older GPUs compile them to nothing, and no kernel for those may use them.

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/// Counts arrivals, and bytes that were announced and have come; a phase ends when both are
/// complete. The first phase has parity 0.
struct SharedBarrier {
  uint64_t state;

  __device__ __forceinline__ uint32_t address() const { return shared_address(this); }
  __device__ __forceinline__ void init(int arrivals) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address()), "r"(arrivals)
                 : "memory");
#endif
  }
  __device__ __forceinline__ void arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address()) : "memory");
#endif
  }
  /// Arrives, and lets the phase end only after so many bytes more.
  __device__ __forceinline__ void expect(uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address()),
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
        "@!p bra again_%=;\n}" ::"r"(address()),
        "r"(parity)
        : "memory");
#endif
  }
};

/// Lets the copy engine see barriers that ordinary stores made; then a barrier of the block.
__device__ __forceinline__ void publish_barriers() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/// What this thread wrote to shared memory comes before the copies into and out of it that
/// follow.
__device__ __forceinline__ void copies_follow_writes() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/// Copies bytes, a multiple of 16 between addresses on 16, which `done` counts.
__device__ __forceinline__ void bulk_copy(void* to, const void* from, uint32_t bytes,
                                          SharedBarrier& done) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(done.address())
      : "memory");
#endif
}

}  // namespace norma
