#pragma once

#include <cstdint>

#include "norma/core/cuda/packed.cuh"
#include "norma/core/cuda/reduce.cuh"
#include "norma/core/cuda/words.cuh"

namespace norma {

// A row of cols elements and kThreads threads: a warp, or a block for long rows. Thread t owns the
// packets t, t + kThreads, … of 16 bytes whatever their alignment, so that a row's bits follow from
// its length and dtype alone.

/// Threads for a row: a warp up to here, in blocks of four rows.
inline constexpr int kWarpCols = 1024;
inline constexpr int kRowsOfABlock = 4;

/// f(first column, packet, how many of its elements are in the row), which may write over what it
/// was given. No branch parts four loads: all are on their way at once.
template <int kThreads, bool kAligned, int kPacket = 0, class T, class F>
__device__ __forceinline__ void for_packets(const T* row, int cols, int thread, const F& f) {
  constexpr int kWidth = kPacket > 0 ? kPacket : kWidest<T>, kStep = kThreads * kWidth, kAhead = 4;
  int c = thread * kWidth;
  for (; c + (kAhead - 1) * kStep + kWidth <= cols; c += kAhead * kStep) {
    Packed<T, kWidth> packets[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) packets[i] = load<kWidth, kAligned>(row + c + i * kStep);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) f(c + i * kStep, packets[i], kWidth);
  }
  for (; c + kWidth <= cols; c += kStep) f(c, load<kWidth, kAligned>(row + c), kWidth);
  if (c < cols) f(c, load_some<kWidth>(row + c, cols - c, T{}), cols - c);
}
template <bool kAligned, int kWidth, class T>
__device__ __forceinline__ void put(T* p, const Packed<T, kWidth>& r, int n) {
  if (kAligned && n == kWidth)
    __builtin_bit_cast(Words<T, kWidth>, r).store_global(p);
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
/// alone keeps shift 0 and sum 0. `kFast`: by the instruction for 2^x, within 3e-7 of each term.
template <class Acc, bool kFast = false>
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
    for (int i = 0; i < kWidth; ++i) sum += power(v[i] - shift);
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
  __device__ __forceinline__ static Acc power(Acc v) {
    if constexpr (kFast)
      return exp2_fast(v * Acc(1.4426950408889634));
    else
      return exp_of(v);
  }
  __device__ Acc lse() const { return log_of(sum) + most; }
};

}  // namespace norma
