#pragma once

#include <cstdint>

namespace norma {

// Barriers in shared memory by which Hopper's copy engine, and the blocks of a cluster, say that
// they are done. Older GPUs compile them to nothing, and no kernel for those may use them.

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/// A barrier by its address in shared memory. It counts arrivals, and bytes that were announced and
/// have come; a phase ends when both are complete. The first phase has parity 0.
struct BarrierAt {
  uint32_t at;

  __device__ __forceinline__ void init(int arrivals) const {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
#endif
  }
  __device__ __forceinline__ void arrive() const {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
#endif
  }
  /// Arrives, and lets the phase end only after so many bytes more.
  __device__ __forceinline__ void expect(uint32_t bytes) const {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes)
                 : "memory");
#endif
  }
  /// Until the phase of that parity has ended.
  __device__ __forceinline__ void wait(uint32_t parity) const {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred p;\nagain_%=:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
        "@!p bra again_%=;\n}" ::"r"(at),
        "r"(parity)
        : "memory");
#endif
  }
};

struct SharedBarrier {
  uint64_t state;

  __device__ __forceinline__ uint32_t address() const { return shared_address(this); }
  __device__ __forceinline__ void init(int arrivals) { BarrierAt{address()}.init(arrivals); }
  __device__ __forceinline__ void arrive() { BarrierAt{address()}.arrive(); }
  __device__ __forceinline__ void expect(uint32_t bytes) { BarrierAt{address()}.expect(bytes); }
  __device__ __forceinline__ void wait(uint32_t parity) { BarrierAt{address()}.wait(parity); }
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
__device__ __forceinline__ void bulk_copy(uint32_t to, const void* from, uint32_t bytes,
                                          BarrierAt done) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(done.at)
      : "memory");
#endif
}
__device__ __forceinline__ void bulk_copy(void* to, const void* from, uint32_t bytes,
                                          SharedBarrier& done) {
  bulk_copy(shared_address(to), from, bytes, BarrierAt{done.address()});
}

/// 16 bytes of shared memory by their address there.
__device__ __forceinline__ uint4 read_shared(uint32_t at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(at)
               : "memory");
  return v;
}
__device__ __forceinline__ void write_shared(uint32_t at, const uint4& v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}
/// The same of one and two floats.
__device__ __forceinline__ float read_shared_float(uint32_t at) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(at) : "memory");
  return v;
}
__device__ __forceinline__ void write_shared(uint32_t at, float v) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(at), "f"(v) : "memory");
}
__device__ __forceinline__ float2 read_shared_pair(uint32_t at) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(at) : "memory");
  return v;
}
__device__ __forceinline__ void write_shared(uint32_t at, float2 v) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(v.x), "f"(v.y) : "memory");
}

}  // namespace norma
