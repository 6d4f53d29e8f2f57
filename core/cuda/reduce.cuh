#pragma once

#include "norma/core/cuda/launch.cuh"

namespace norma {

// Sums in a fixed order: the same values in the same lanes give the same bits.

/// The sum over the warp's lanes (or groups of kLanes of them), in every lane. By butterflies, so
/// that all lanes add the same pairs and agree to the bit.
template <int kLanes = kWarpSize, class T>
__device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}

/// The largest over the lanes; NaN where one of them is.
template <int kLanes = kWarpSize, class T>
__device__ __forceinline__ T warp_max(T v) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, v, step);
    v = other > v || other != other ? other : v;
  }
  return v;
}

/// The sum over a block of kThreads threads, in every thread. `slots` is shared memory for a T a
/// warp, and free again after the next __syncthreads().
template <int kThreads, class T>
__device__ T block_sum(T v, T* slots) {
  constexpr int kWarps = kThreads / kWarpSize;
  v = warp_sum(v);
  if constexpr (kWarps == 1) return v;
  if (threadIdx.x % kWarpSize == 0) slots[threadIdx.x / kWarpSize] = v;
  __syncthreads();
  T sum = slots[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) sum += slots[w];
  return sum;
}

template <int kThreads, class T>
__device__ T block_max(T v, T* slots) {
  constexpr int kWarps = kThreads / kWarpSize;
  v = warp_max(v);
  if constexpr (kWarps == 1) return v;
  if (threadIdx.x % kWarpSize == 0) slots[threadIdx.x / kWarpSize] = v;
  __syncthreads();
  T most = slots[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) {
    const T other = slots[w];
    most = other > most || other != other ? other : most;
  }
  return most;
}

}  // namespace norma
