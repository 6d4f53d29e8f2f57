#pragma once

#include <cstdint>

#include "norma/core/cuda/packed.cuh"
#include "norma/core/cuda/reduce.cuh"

namespace norma {

// A row of cols elements and kThreads threads: a warp, or a block for long rows. Thread t owns the
// packets t, t + kThreads, … of 16 bytes whatever their alignment, so that a row's bits follow from
// its length and dtype alone.

/// Threads for a row: a warp up to here, in blocks of four rows.
inline constexpr int kWarpCols = 1024;
inline constexpr int kRowsOfABlock = 4;

/// f(first column, packet, how many of its elements are in the row)
template <int kThreads, bool kAligned, int kPacket = 0, class T, class F>
__device__ __forceinline__ void for_packets(const T* __restrict__ row, int cols, int thread,
                                            const F& f) {
  constexpr int kWidth = kPacket > 0 ? kPacket : kWidest<T>;
#pragma unroll 4
  for (int c = thread * kWidth; c < cols; c += kThreads * kWidth) {
    if (c + kWidth <= cols)
      f(c, load<kWidth, kAligned>(row + c), kWidth);
    else
      f(c, load_some<kWidth>(row + c, cols - c, T{}), cols - c);
  }
}
template <bool kAligned, int kWidth, class T>
__device__ __forceinline__ void put(T* p, const Packed<T, kWidth>& r, int n) {
  if (n == kWidth)
    store<kAligned>(p, r);
  else
    store_some(p, r, n);
}

template <int kThreads, class Acc>
__device__ __forceinline__ Acc row_sum(Acc v, Acc* slots) {
  if constexpr (kThreads == kWarpSize) return warp_sum(v);
  __syncthreads();
  return block_sum<kThreads>(v, slots);
}
template <int kThreads, class Acc>
__device__ __forceinline__ Acc row_max(Acc v, Acc* slots) {
  if constexpr (kThreads == kWarpSize) return warp_max(v);
  __syncthreads();
  return block_max<kThreads>(v, slots);
}

/// Σ e^(x − shift) as it grows: one pass over the row. NaN and +∞ make the sum NaN; a row of −∞
/// alone keeps shift 0 and sum 0.
template <class Acc>
struct OnlineSum {
  Acc most = -INFINITY, sum = 0;

  template <class T, int kWidth>
  __device__ __forceinline__ void add(const Packed<T, kWidth>& packet, int n) {
    Acc v[kWidth], top = most;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      v[i] = i < n ? convert<Acc>(packet[i]) : Acc(-INFINITY);
      top = v[i] > top ? v[i] : top;
    }
    if (top > most) {
      sum *= exp_of(most - top);  // 0 at first: e^−∞
      most = top;
    }
    const Acc shift = top == Acc(-INFINITY) ? Acc(0) : top;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum += exp_of(v[i] - shift);
  }
  /// Over all threads of the row.
  template <int kThreads>
  __device__ __forceinline__ void meet(Acc* slots) {
    const Acc top = row_max<kThreads>(most, slots);
    const Acc shift = top == Acc(-INFINITY) ? Acc(0) : top;
    sum = row_sum<kThreads>(
        most == Acc(-INFINITY) && sum == 0 ? Acc(0) : sum * exp_of(most - shift), slots);
    most = shift;
  }
  __device__ Acc lse() const { return log_of(sum) + most; }
};

}  // namespace norma
