#pragma once

#include "norma/core/cuda/launch.cuh"
#include "norma/core/cuda/numeric.cuh"
#include "norma/core/cuda/packed.cuh"
#include "norma/core/cuda/scratch.h"
#include "norma/core/cuda/words.cuh"
#include "norma/ops/scan/kernels.h"

namespace norma::scan_cuda {

// A block runs along time for some neighbouring channels, a tile of kSteps rows at a time: loads
// and stores go through shared memory, whole rows at once, and softplus and gate are computed there
// once an element. In between each channel belongs to kLanes lanes that hold kStates states each in
// registers; sums over N are scattered sums over those lanes, four steps together.
//   bound  exponentials: B·T·E·N of them at 16 a clock and multiprocessor

constexpr int kThreads = 128, kSteps = 32, kQuad = 4;

/// N ≤ kLanes · kStates states a channel.
template <int kLanesOf, int kStatesOf>
struct Plan {
  static constexpr int kLanes = kLanesOf, kStates = kStatesOf, kN = kLanes * kStates;
  static constexpr int kChannels = kThreads / kLanes;
  static constexpr int kPer = kChannels / 4;  // elements a thread in a tile: four threads a row
};
template <class F>
void visit_plan(int64_t n, const F& f) {
  if (n <= 16) return f.template operator()<Plan<4, 4>>();
  if (n <= 64) return f.template operator()<Plan<16, 4>>();
  return f.template operator()<Plan<32, 8>>();
}

/// A (B, T, ·) tensor as a kernel walks it; null where absent.
template <class T>
struct Sequence {
  T* data = nullptr;
  int64_t batch_stride = 0, row_stride = 0;

  template <class AnyView>
  static Sequence of(const AnyView& view) {
    if (!view.data) return {};
    return {view.template as<std::remove_const_t<T>>(), view.strides[0], view.strides[1]};
  }
  __device__ T* row(int64_t batch, int64_t t) const {
    return data + batch * batch_stride + t * row_stride;
  }
  /// Whether rows can be read `width` elements at a time.
  bool aligned(int width) const {
    return reinterpret_cast<uintptr_t>(data) % (sizeof(T) * width) == 0 &&
           batch_stride % width == 0 && row_stride % width == 0;
  }
};

struct Sizes {
  int64_t batch, length, channels, blocks;  // blocks of channels
  int n;
  bool aligned;  // every full run of kPer elements can be read and written at once
};

__device__ __forceinline__ float exp2_fast(float v) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(v));
  return y;
}
__device__ __forceinline__ double exp2_fast(double v) { return ::exp2(v); }
__device__ __forceinline__ float log1p_of(float v) { return log1pf(v); }
__device__ __forceinline__ double log1p_of(double v) { return ::log1p(v); }
__device__ __forceinline__ float expm1_of(float v) { return expm1f(v); }
__device__ __forceinline__ double expm1_of(double v) { return ::expm1(v); }
template <class Acc>
__device__ __forceinline__ Acc softplus(Acc v) {
  return (v > 0 ? v : Acc(0)) + log1p_of(exp2_fast(-(v > 0 ? v : -v) * Acc(1.4426950408889634)));
}
template <class Acc>
__device__ __forceinline__ Acc sigmoid(Acc v) {
  return 1 / (1 + exp2_fast(v * Acc(-1.4426950408889634)));
}

/// The sums of kValues values over kLanes lanes that are kStride apart: each lane keeps its share,
/// kValues / kLanes of them, or one that several lanes share. v[0] … hold them then.
template <int kValues, int kLanes, int kStride, class Acc>
__device__ __forceinline__ void scatter_sum(Acc (&v)[kValues]) {
  const int lane = int(threadIdx.x) / kStride % kLanes;
  int values = kValues, lanes = kLanes;
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    if (values > 1) {
      values /= 2;
      const bool upper = lane & step;
#pragma unroll
      for (int i = 0; i < kValues / 2; ++i) {
        if (i >= values) break;
        const Acc give = upper ? v[i] : v[i + values], keep = upper ? v[i + values] : v[i];
        v[i] = keep + __shfl_xor_sync(0xffffffffu, give, step * kStride);
      }
    } else {
      v[0] += __shfl_xor_sync(0xffffffffu, v[0], step * kStride);
    }
    lanes /= 2;
  }
}

/// A thread's kPer elements of a row as they come; those beyond `count` are zeros.
template <int kPer, class T>
__device__ __forceinline__ Words<T, kPer> fetch(const T* from, int count, bool aligned) {
  return aligned && count >= kPer ? Words<T, kPer>::load(from)
                                  : Words<T, kPer>::load_some(from, count);
}
/// A thread's kPer elements of a row on their way out.
template <int kPer, class T>
struct Elements {
  T v[kPer];

  __device__ __forceinline__ void write(T* to, int count, bool aligned) const {
    constexpr int kWide = kPer < kWidest<T> ? kPer : kWidest<T>;
    if (aligned && count >= kPer) {
#pragma unroll
      for (int i = 0; i < kPer; i += kWide) {
        Packed<T, kWide> packed;
#pragma unroll
        for (int e = 0; e < kWide; ++e) packed[e] = v[i + e];
        store(to + i, packed);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kPer; ++i)
      if (i < count) to[i] = v[i];
  }
};

/// b and c of float64 with many states do not fit into shared memory: they are read where they lie.
template <class T, class P>
inline constexpr bool kDirect = sizeof(T) == 8 && P::kN > 64;

/// Rows of b or c of a tile, read early and put into shared memory late.
template <class P, class T>
struct States {
  static constexpr int kEach = kSteps * P::kN / kThreads;
  static constexpr bool kEarly = kEach <= 16;
  Words<T, 1> v[kEarly ? kEach : 1];

  __device__ __forceinline__ static Words<T, 1> one(const Sequence<const T>& from, const Sizes& s,
                                                    int64_t batch, int64_t first, int i) {
    const int at = i * kThreads + int(threadIdx.x), t = at / P::kN, n = at % P::kN;
    return first + t < s.length && n < s.n ? Words<T, 1>::load(from.row(batch, first + t) + n)
                                           : Words<T, 1>::zero();
  }
  __device__ __forceinline__ void read(const Sequence<const T>& from, const Sizes& s, int64_t batch,
                                       int64_t first) {
    if constexpr (kEarly) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) v[i] = one(from, s, batch, first, i);
    }
  }
  template <class Acc>
  __device__ __forceinline__ void put(const Sequence<const T>& from, const Sizes& s, int64_t batch,
                                      int64_t first, Acc* to) const {
    if constexpr (kDirect<T, P>) return;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      Words<T, 1> value;
      if constexpr (kEarly)
        value = v[i];
      else
        value = one(from, s, batch, first, i);
      to[i * kThreads + threadIdx.x] = convert<Acc>(value[0]);
    }
  }
};

template <class T, class P>
struct SharedStates {
  stats_t<T> v[kDirect<T, P> ? 1 : kSteps][P::kN];
};

/// kStates neighbouring numbers of shared memory.
template <int kStates, class Acc>
__device__ __forceinline__ void read_states(const Acc* from, Acc (&to)[kStates]) {
  constexpr int kWide = 16 / int(sizeof(Acc));
#pragma unroll
  for (int i = 0; i < kStates; i += kWide) {
    const auto packed = load<kWide>(from + i);
#pragma unroll
    for (int e = 0; e < kWide; ++e) to[i + e] = packed[e];
  }
}

/// States first … first + kStates − 1 of step t0 + t.
template <class T, class P, class Acc>
__device__ __forceinline__ void read_states(const SharedStates<T, P>& shared,
                                            const Sequence<const T>& from, const Sizes& s,
                                            int64_t batch, int64_t t0, int t, int first,
                                            Acc (&to)[P::kStates]) {
  if constexpr (kDirect<T, P>) {
#pragma unroll
    for (int i = 0; i < P::kStates; ++i)
      to[i] = t0 + t < s.length && first + i < s.n
                  ? convert<Acc>(from.row(batch, t0 + t)[first + i])
                  : Acc(0);
  } else {
    read_states(&shared.v[t][first], to);
  }
}

}  // namespace norma::scan_cuda
