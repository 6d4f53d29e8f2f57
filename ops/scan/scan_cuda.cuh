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
// registers; sums over N are scattered sums over those lanes, kQuad steps together.
//   bound  exponentials: B·T·E·N of them at 16 a clock and multiprocessor

constexpr int kThreads = 128, kSteps = 32;

/// N ≤ kLanes · kStates states a channel.
template <int kLanesOf, int kStatesOf>
struct Plan {
  static constexpr int kLanes = kLanesOf, kStates = kStatesOf, kN = kLanes * kStates;
  static constexpr int kChannels = kThreads / kLanes;
  static constexpr int kPer = kChannels / 4;  // elements a thread in a tile: four threads a row
  static constexpr int kQuad = kStates > 4 ? 2 : 4;  // steps at once: what registers hold
};
/// Steps or quads that are unrolled: large plans have enough to do in one, and take long to
/// compile.
template <class P>
inline constexpr int kUnroll = P::kN <= 16 ? 2 : 1;
/// float64 is there to check the others: one plan, which takes a third of the time to compile.
template <class T, class F>
void visit_plan(int64_t n, const F& f) {
  if constexpr (sizeof(T) < 8) {
    if (n <= 16) return f.template operator()<Plan<4, 4>>();
    if (n <= 64) return f.template operator()<Plan<16, 4>>();
  }
  return f.template operator()<Plan<32, 8>>();
}

/// Plans that have kernels of their own for sizes that fill them.
template <class T, class P>
inline constexpr bool kHasWhole = P::kN <= 16 && sizeof(T) < 8;

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
  bool aligned;         // every full run of kPer elements can be read and written at once
  bool states_aligned;  // and every four states of b and c
  int64_t segments = 1, tiles = 0;  // of time, and tiles each

  /// Whether all runs of channels and states are read and written whole.
  template <class P>
  bool whole() const {
    return aligned && states_aligned && channels % P::kChannels == 0 && n == P::kN;
  }

  /// Where blocks are too few for the multiprocessors, which hold `at_once`, time is cut: a first,
  /// cheaper walk finds what each segment makes of its state, and the second begins there.
  void cut(int64_t at_once) {
    const int64_t beside = batch * blocks, all = ceil_div(length, int64_t{kSteps});
    segments = beside == 0 || beside >= 264 ? 1 : at_once / beside;
    segments = segments < all / 4 ? segments : all / 4;
    if (segments < 1) segments = 1;
    tiles = ceil_div(all, segments);
    segments = ceil_div(all, tiles);
  }
  __device__ int64_t begin(int64_t segment) const { return segment * tiles * kSteps; }
  __device__ int64_t end(int64_t segment) const {
    return min((segment + 1) * tiles * kSteps, length);
  }
};

/// The states that segments begin with, or their gradients that they end with.
template <class T>
struct CarryArgs {
  Sizes size;
  bool dt_softplus, log_a;
  Sequence<const T> dt, rows, columns, z;  // x and b, or dy, c and the gate
  const stats_t<T>*a, *dt_bias, *first;    // first (B, E, N) or null
  stats_t<T>* carried;                     // (B, segments, N, E)
  stats_t<T>* sums;                        // (B, segments, E): of Δ

  int64_t numbers() const { return size.batch * size.segments * (size.n + 1) * size.channels; }
};
template <class T>
void carry_along(Cuda on, const CarryArgs<T>& args);
template <class T>
void carry_against(Cuda on, const CarryArgs<T>& args);

/// a, which may come as log(−a).
template <class Acc>
__device__ __forceinline__ Acc rate_of(Acc a, bool is_log) {
  return is_log ? -exp_of(a) : a;
}
/// log(1 + v) for v in (0, 1], as 2 artanh(v / (2 + v)): the series' next term is 2e-8 of it.
__device__ __forceinline__ float log1p_of(float v) {
  const float s = v * reciprocal_fast(2 + v), q = s * s;
  float sum = 2.0f / 13;
  sum = sum * q + 2.0f / 11, sum = sum * q + 2.0f / 9, sum = sum * q + 2.0f / 7;
  sum = sum * q + 2.0f / 5, sum = sum * q + 2.0f / 3;
  return s * (sum * q + 2);
}
__device__ __forceinline__ double log1p_of(double v) { return ::log1p(v); }
template <class Acc>
__device__ __forceinline__ Acc softplus(Acc v) {
  return (v > 0 ? v : Acc(0)) + log1p_of(exp2_fast(-(v > 0 ? v : -v) * Acc(1.4426950408889634)));
}
/// 1 − e^−v for v ≥ 0: softplus′ where v is softplus. Near zero by its series.
__device__ __forceinline__ float one_less_decay(float v) {
  const float series =
      v * (1 - v * (1.0f / 2) *
                   (1 - v * (1.0f / 3) *
                            (1 - v * (1.0f / 4) * (1 - v * (1.0f / 5) * (1 - v * (1.0f / 6))))));
  return v < 0.25f ? series : 1 - exp2_fast(v * -1.4426950408889634f);
}
__device__ __forceinline__ double one_less_decay(double v) { return -::expm1(-v); }

/// The same for data of type T: of half types within 2e-5, by a shorter series.
template <class T, class Acc>
__device__ __forceinline__ Acc softplus_slope(Acc v) {
  if constexpr (sizeof(T) == 2) {
    const float series = v * (1 - v * (0.5f - v * (1.0f / 6)));
    return v < 0.0625f ? series : 1 - exp2_fast(v * -1.4426950408889634f);
  } else {
    return one_less_decay(v);
  }
}
/// Δ from dt + bias, side by side: one question for all, no branch an element. Steps beyond the end
/// change nothing: Δ = 0.
template <int kPer, class Acc>
__device__ __forceinline__ void make_steps(Acc (&delta)[kPer], bool with_softplus, bool real) {
  if (with_softplus) {
#pragma unroll
    for (int i = 0; i < kPer; ++i) delta[i] = softplus(delta[i]);
  }
#pragma unroll
  for (int i = 0; i < kPer; ++i) delta[i] = real ? delta[i] : Acc(0);
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

/// Sums over a warp's channels of what each lane has for its own states, dc and db. Halves of them
/// are exchanged between lanes whose states are held in the opposite order, register i being state
/// i ^ turn_of(…): what one keeps the other gives from other registers, and nothing is selected by
/// lane but at the last stage, dc or db.
template <int kStates, int kSide>
inline constexpr int kCopies = kSide < kStates ? kSide : kStates;  // orders in use
template <int kStates, int kSide, int kStride>
__device__ __forceinline__ int turn_of() {
  int turn = 0, side = int(threadIdx.x) / kStride % kSide, keep = kStates;
#pragma unroll
  for (int step = kSide / 2; step > 0; step /= 2) {
    keep /= 2;
    if (side & step) turn |= keep;  // 0 at a stage that selects
  }
  return turn;
}
template <int kStates, int kSide, int kStride, class Acc>
__device__ __forceinline__ void sum_over_channels(Acc (&dc)[kStates], Acc (&db)[kStates]) {
  static_assert(kSide <= 2 * kStates);
  int keep = kStates;
#pragma unroll
  for (int step = kSide / 2; step > 0; step /= 2) {
    if (keep > 1) {
      keep /= 2;
#pragma unroll
      for (int i = 0; i < kStates / 2; ++i) {
        if (i >= keep) break;
        dc[i] += __shfl_xor_sync(0xffffffffu, dc[i + keep], step * kStride);
        db[i] += __shfl_xor_sync(0xffffffffu, db[i + keep], step * kStride);
      }
    } else {
      const bool upper = int(threadIdx.x) / kStride & step;
      const Acc give = upper ? dc[0] : db[0], own = upper ? db[0] : dc[0];
      dc[0] = own + __shfl_xor_sync(0xffffffffu, give, step * kStride);
    }
  }
}

/// A thread's kPer elements of a row as they come; those beyond `count` are zeros. Where there are
/// all or none, `kWhole`, nothing but the load is there: what a choice between loads leaves behind,
/// moves of registers, waits for them at once.
template <int kPer, bool kWhole, class T>
__device__ __forceinline__ Words<T, kPer> fetch(const T* from, int count, bool aligned) {
  if constexpr (kWhole)
    return count > 0 ? Words<T, kPer>::load(from) : Words<T, kPer>::zero();
  else
    return aligned && count >= kPer ? Words<T, kPer>::load(from)
                                    : Words<T, kPer>::load_some(from, count);
}
/// kPer values on their way to a row, as registers that are stored whole: half types one by one
/// would be stored in eight pieces.
template <class T, int kPer, class Acc>
__device__ __forceinline__ Words<T, kPer> rounded(const Acc (&v)[kPer]) {
  Words<T, kPer> words;
  if constexpr (sizeof(T) == 2 && kPer > 1) {
#pragma unroll
    for (int i = 0; i < kPer; i += 2) words.w[i / 2] = pack_pair<T>(v[i], v[i + 1]);
  } else if constexpr (sizeof(T) == 2) {
    words.w[0] = convert<T>(v[0]).bits;
  } else if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < kPer; ++i) words.w[i] = __float_as_uint(v[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      words.w[2 * i] = uint32_t(__double2loint(v[i]));
      words.w[2 * i + 1] = uint32_t(__double2hiint(v[i]));
    }
  }
  return words;
}
/// The first `count` of them, or all.
template <bool kWhole, int kPer, class T>
__device__ __forceinline__ void write(T* to, const Words<T, kPer>& words, int count, bool aligned) {
  if constexpr (kWhole) {
    words.store_global(to);
  } else if (aligned && count >= kPer) {
    words.store_global(to);
  } else {
#pragma unroll
    for (int i = 0; i < kPer; ++i)
      if (i < count) to[i] = words[i];
  }
}

/// kPer neighbouring numbers of shared memory.
template <int kPer, class Acc>
__device__ __forceinline__ void put_run(Acc* to, const Acc (&v)[kPer]) {
  constexpr int kWide = kPer < kWidest<Acc> ? kPer : kWidest<Acc>;
#pragma unroll
  for (int i = 0; i < kPer; i += kWide) {
    Packed<Acc, kWide> packed;
#pragma unroll
    for (int e = 0; e < kWide; ++e) packed[e] = v[i + e];
    store(to + i, packed);
  }
}
template <int kPer, class Acc>
__device__ __forceinline__ void get_run(const Acc* from, Acc (&v)[kPer]) {
  constexpr int kWide = kPer < kWidest<Acc> ? kPer : kWidest<Acc>;
#pragma unroll
  for (int i = 0; i < kPer; i += kWide) {
    const auto packed = load<kWide>(from + i);
#pragma unroll
    for (int e = 0; e < kWide; ++e) v[i + e] = packed[e];
  }
}
/// A tile of numbers, a row a step; padded, so that two rows' runs lie in different banks.
template <class P, class Acc>
using Tile = Acc[kSteps][P::kChannels + 16 / int(sizeof(Acc))];

/// The same with a channel's steps side by side: its owner reads a quad's at once. A channel's
/// eights of steps are in an order of its own, so that neither owners nor those who write and read
/// rows, a number at a time, meet in a bank.
template <class P, class Acc>
struct TurnedTile {
  static constexpr int kRow = kSteps + 16 / int(sizeof(Acc));
  Acc v[P::kChannels * kRow];

  /// The steps of an aligned eight follow each other.
  __device__ __forceinline__ static int place(int step, int channel) {
    return channel * kRow + (step ^ (channel & (kSteps - 8)));
  }
  __device__ __forceinline__ Acc& at(int step, int channel) { return v[place(step, channel)]; }
  __device__ __forceinline__ void put_row(int step, int channel, const Acc (&from)[P::kPer]) {
#pragma unroll
    for (int i = 0; i < P::kPer; ++i) at(step, channel + i) = from[i];
  }
  __device__ __forceinline__ void get_row(int step, int channel, Acc (&to)[P::kPer]) {
#pragma unroll
    for (int i = 0; i < P::kPer; ++i) to[i] = at(step, channel + i);
  }
  /// kQuad steps from `step` on.
  __device__ __forceinline__ void get_quad(int step, int channel, Acc (&to)[P::kQuad]) {
    get_run(&at(step, channel), to);
  }
};

/// b and c of float64 with many states do not fit into shared memory: they are read where they lie.
template <class T, class P>
inline constexpr bool kDirect = sizeof(T) == 8 && P::kN > 64;

/// Rows of b or c of a tile, four states a load, read early and put into shared memory late.
template <class P, bool kWhole, class T>
struct States {
  static constexpr int kRun = 4, kRuns = kSteps * P::kN / (kThreads * kRun);
  static constexpr bool kEarly = kRuns <= 4;
  Words<T, kRun> v[kEarly ? kRuns : 1];

  __device__ __forceinline__ static Words<T, kRun> one(const Sequence<const T>& from,
                                                       const Sizes& s, int64_t batch, int64_t first,
                                                       int i, bool wanted = true) {
    const int at = (i * kThreads + int(threadIdx.x)) * kRun, t = at / P::kN, n = at % P::kN;
    return fetch<kRun, kWhole>(from.row(batch, first + t) + n,
                               wanted && first + t < s.length ? s.n - n : 0, s.states_aligned);
  }
  __device__ __forceinline__ void read(const Sequence<const T>& from, const Sizes& s, int64_t batch,
                                       int64_t first, bool wanted) {
    if constexpr (kEarly) {
#pragma unroll
      for (int i = 0; i < kRuns; ++i) v[i] = one(from, s, batch, first, i, wanted);
    }
  }
  template <class Acc, int kCopies, int kRows>
  __device__ __forceinline__ void put(const Sequence<const T>& from, const Sizes& s, int64_t batch,
                                      int64_t first, Acc (&to)[kCopies][kRows][P::kN]) const {
#pragma unroll(kEarly ? kRuns : 4)
    for (int i = 0; i < (kDirect<T, P> ? 0 : kRuns); ++i) {
      Words<T, kRun> words;
      if constexpr (kEarly)
        words = v[i];
      else
        words = one(from, s, batch, first, i);
      const int at = (i * kThreads + int(threadIdx.x)) * kRun;
#pragma unroll
      for (int copy = 0; copy < kCopies; ++copy) {
        constexpr int kTurn = P::kStates / kCopies;
        static_assert(kCopies == 1 || P::kStates <= kRun);  // an order changes within a run
        Acc run[kRun];
#pragma unroll
        for (int e = 0; e < kRun; ++e)
          run[e] = convert<Acc>(words[kCopies == 1 ? e : e ^ copy * kTurn]);
        put_run(&to[copy][at / P::kN][at % P::kN], run);
      }
    }
  }
};

/// b or c of a tile; copy f has state n at n ^ f kStates / kCopies.
template <class T, class P, int kCopies = 1>
struct SharedStates {
  stats_t<T> v[kCopies][kDirect<T, P> ? 1 : kSteps][P::kN];
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

/// States first … first + kStates − 1 of step t0 + t, in the order of a copy.
template <class T, class P, int kCopies, class Acc>
__device__ __forceinline__ void read_states(const SharedStates<T, P, kCopies>& shared,
                                            const Sequence<const T>& from, const Sizes& s,
                                            int64_t batch, int64_t t0, int t, int copy, int first,
                                            Acc (&to)[P::kStates]) {
  if constexpr (kDirect<T, P>) {
    static_assert(kCopies == 1);
#pragma unroll
    for (int i = 0; i < P::kStates; ++i)
      to[i] = t0 + t < s.length && first + i < s.n
                  ? convert<Acc>(from.row(batch, t0 + t)[first + i])
                  : Acc(0);
  } else {
    read_states(&shared.v[copy][t][first], to);
  }
}

}  // namespace norma::scan_cuda
