#pragma once

#include "norma/core/cuda/barrier.cuh"

namespace norma {

// Copies of 16 bytes from global to shared memory in the background (cp.async, sm_80). Each thread
// waits for its own.

__device__ __forceinline__ void copy_16(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void copy_16(void* to, const void* from) {
  copy_16(shared_address(to), from);
}
/// The same by way of the first cache, for what many blocks read.
__device__ __forceinline__ void copy_16_cached(uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
/// Zeros where `real` is false, and nothing is read.
__device__ __forceinline__ void copy_16(void* to, const void* from, bool real) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(real ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copy_4(uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
/// Arrives once all that this thread asked for has come, without making it wait.
__device__ __forceinline__ void arrive_with_copies(BarrierAt there) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(there.at) : "memory");
}
/// What this thread asked for since the last call is a group, be it empty.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Until all but the last kPending groups are there.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
/// Until everything is there, in a group or not.
__device__ __forceinline__ void wait_for_all_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

}  // namespace norma
