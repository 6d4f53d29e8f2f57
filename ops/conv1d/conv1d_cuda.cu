#include "norma/core/cuda/launch.cuh"
#include "norma/core/cuda/numeric.cuh"
#include "norma/core/cuda/packed.cuh"
#include "norma/core/cuda/scratch.h"
#include "norma/core/cuda/words.cuh"
#include "norma/ops/conv1d/kernels.h"

namespace norma {
namespace {

// A thread holds kWidth neighbouring channels and runs along time with the last K rows in
// registers; a warp's lanes lie side by side, so that a row is read in whole sectors.
//   bytes  forward x and y, backward x, dy and dx, each once; K − 1 rows a tile again, from L2
//   bound  memory
constexpr int kForwardSteps = 32;   // rows a thread
constexpr int kBackwardSteps = 32;  // rows a thread; kRowThreads of them share one partial sum
constexpr int kRowThreads = 8;
constexpr int kForwardThreads = 256;

constexpr int kAhead = 4;  // rows in flight

template <class T>
constexpr int kWidth = sizeof(T) == 8 ? 2 : 4;

/// A (B, T, C) tensor as a kernel walks it; null where absent.
template <class T>
struct Sequence {
  T* data;
  int64_t batch_stride, row_stride, length;

  template <class AnyView>
  static Sequence of(const AnyView& view) {
    if (!view.data) return {nullptr, 0, 0, 0};
    return {view.template as<std::remove_const_t<T>>(), view.strides[0], view.strides[1],
            view.shape[1]};
  }
  __device__ T* row(int64_t batch, int64_t t) const {
    return data + batch * batch_stride + t * row_stride;
  }
  bool aligned() const {
    constexpr int kNeeded = kWidth<std::remove_const_t<T>>;
    return !data ||
           (is_aligned<kNeeded>(data) && batch_stride % kNeeded == 0 && row_stride % kNeeded == 0);
  }
};

/// kWidth values in Acc.
template <class T>
struct Lane {
  using Acc = stats_t<T>;
  Acc v[kWidth<T>];

  __device__ static Lane zero() {
    Lane lane;
#pragma unroll
    for (int i = 0; i < kWidth<T>; ++i) lane.v[i] = 0;
    return lane;
  }
};
/// As they lie, `n` of kWidth channels exist.
template <bool kAligned, class T>
__device__ __forceinline__ Words<T, kWidth<T>> fetch(const T* from, int n) {
  if constexpr (kAligned)
    return Words<T, kWidth<T>>::load(from);
  else
    return Words<T, kWidth<T>>::load_some(from, n);
}
template <class T>
__device__ __forceinline__ Lane<T> widened(const Words<T, kWidth<T>>& words) {
  Lane<T> lane;
#pragma unroll
  for (int i = 0; i < kWidth<T>; ++i) lane.v[i] = convert<typename Lane<T>::Acc>(words[i]);
  return lane;
}
template <bool kAligned, class T>
__device__ __forceinline__ Lane<T> read(const T* from, int n) {
  return widened<T>(fetch<kAligned>(from, n));
}
template <bool kAligned, class T>
__device__ __forceinline__ void write(T* to, const Lane<T>& lane, int n) {
  Packed<T, kWidth<T>> packed;
#pragma unroll
  for (int i = 0; i < kWidth<T>; ++i) packed[i] = convert<T>(lane.v[i]);
  if constexpr (kAligned)
    store(to, packed);
  else
    store_some(to, packed, n);
}

/// Half types are rounded to 8 or 11 bits anyway: for them the fast exponential and division.
template <class T>
__device__ __forceinline__ stats_t<T> sigmoid(stats_t<T> p) {
  if constexpr (sizeof(T) == 2)
    return __fdividef(1.0f, 1.0f + __expf(-p));
  else
    return 1 / (1 + exp_of(-p));
}

/// The taps and the bias of a thread's channels.
template <class T, int kTaps>
struct Weights {
  using Acc = stats_t<T>;
  Acc w[kTaps][kWidth<T>], b[kWidth<T>];

  /// A channel's taps lie side by side: one load where that is possible.
  __device__ void read(const Acc* __restrict__ weight, const Acc* __restrict__ bias, int64_t c,
                       int n) {
    constexpr bool kWhole = kTaps == 2 || kTaps == 4;
#pragma unroll
    for (int i = 0; i < kWidth<T>; ++i) {
      b[i] = bias && i < n ? bias[c + i] : Acc(0);
      if constexpr (kWhole) {
        if (is_aligned<kTaps>(weight)) {
          Packed<Acc, kTaps> taps{};
          if (i < n) taps = load<kTaps>(weight + (c + i) * kTaps);
#pragma unroll
          for (int k = 0; k < kTaps; ++k) w[k][i] = taps[k];
          continue;
        }
      }
#pragma unroll
      for (int k = 0; k < kTaps; ++k) w[k][i] = i < n ? weight[(c + i) * kTaps + k] : Acc(0);
    }
  }
  /// b + Σ_k w_k ⊙ u_k, u the last K rows, the oldest first.
  __device__ Lane<T> convolve(const Lane<T> (&u)[kTaps]) const {
    Lane<T> p;
#pragma unroll
    for (int i = 0; i < kWidth<T>; ++i) {
      p.v[i] = b[i];
#pragma unroll
      for (int k = 0; k < kTaps; ++k) p.v[i] += w[k][i] * u[k].v[i];
    }
    return p;
  }
};
template <int kTaps, class T>
__device__ __forceinline__ void push(Lane<T> (&window)[kTaps], const Lane<T>& newest) {
#pragma unroll
  for (int k = 0; k + 1 < kTaps; ++k) window[k] = window[k + 1];
  window[kTaps - 1] = newest;
}
/// Row t of x, or of what lies before it; zeros elsewhere.
template <bool kAligned, int kTaps, class T>
__device__ __forceinline__ Lane<T> read_input(const Sequence<const T>& x,
                                              const Sequence<const T>& state, int64_t batch,
                                              int64_t t, int64_t c, int n) {
  if (t >= 0) return t < x.length ? read<kAligned>(x.row(batch, t) + c, n) : Lane<T>::zero();
  if (state.data && t >= 1 - kTaps) return read<kAligned>(state.row(batch, t + kTaps - 1) + c, n);
  return Lane<T>::zero();
}

template <class T, int kTaps>
struct ForwardKernelArgs {
  Sequence<const T> x, state;
  const stats_t<T>*w, *b;
  Sequence<T> y;
  int64_t channels, lanes, tiles, count;  // lanes of kWidth channels, tiles of rows
  bool silu;
};

template <class T, int kTaps, bool kAligned>
__global__ void __launch_bounds__(kForwardThreads)
    conv1d_forward_kernel(ForwardKernelArgs<T, kTaps> k) {
  const int64_t i = int64_t{blockIdx.x} * kForwardThreads + threadIdx.x;
  if (i >= k.count) return;
  const int64_t lane = i % k.lanes, tile = i / k.lanes % k.tiles, batch = i / k.lanes / k.tiles;
  const int64_t c = lane * kWidth<T>, first = tile * kForwardSteps;
  const int n = int(min(int64_t{kWidth<T>}, k.channels - c));
  Weights<T, kTaps> weights;
  weights.read(k.w, k.b, c, n);
  Lane<T> u[kTaps];
#pragma unroll
  for (int j = 1; j < kTaps; ++j)
    u[j] = read_input<kAligned, kTaps>(k.x, k.state, batch, first + j - kTaps, c, n);
  u[0] = Lane<T>::zero();
  for (int64_t t = first; t < min(first + kForwardSteps, k.x.length); t += kAhead) {
    Words<T, kWidth<T>> next[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a)
      if (t + a < k.x.length) next[a] = fetch<kAligned>(k.x.row(batch, t + a) + c, n);
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      push(u, widened<T>(next[a]));
      if (t + a >= k.x.length) break;
      Lane<T> p = weights.convolve(u);
      if (k.silu) {
#pragma unroll
        for (int e = 0; e < kWidth<T>; ++e) p.v[e] *= sigmoid<T>(p.v[e]);
      }
      write<kAligned>(k.y.row(batch, t + a) + c, p, n);
    }
  }
}

/// The last K − 1 rows of u.
template <class T>
__global__ void conv1d_last_state_kernel(Sequence<const T> x, Sequence<const T> state,
                                         Sequence<T> last, int64_t channels, int64_t past,
                                         int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int64_t c = i % channels, j = i / channels % past, batch = i / channels / past;
  const int64_t t = x.length + j - past;  // of x
  T value{};
  if (t >= 0)
    value = x.row(batch, t)[c];
  else if (state.data)
    value = state.row(batch, t + past)[c];
  last.row(batch, j)[c] = value;
}

template <class T, int kTaps>
struct BackwardKernelArgs {
  Sequence<const T> dy, dlast, x, state;
  const stats_t<T>*w, *b;
  Sequence<T> dx, dstate;
  stats_t<T>* partial;                     // (row blocks, K + 1, C)
  int64_t channels, lanes, tiles, blocks;  // tiles of kBackwardSteps rows, blocks of tiles
  int64_t first;                           // −(K − 1) where dstate is wanted, else 0
  bool silu;
};

/// Step s makes dp_s; by then every dp that reaches row s − K + 1 of dx is there.
template <class T, int kTaps, bool kAligned>
__global__ void __launch_bounds__(kWarpSize* kRowThreads, sizeof(T) == 8 ? 1 : 2)
    conv1d_backward_kernel(BackwardKernelArgs<T, kTaps> k) {
  using Acc = stats_t<T>;
  constexpr int kPast = kTaps - 1;
  const int64_t lane = int64_t{blockIdx.y} * kWarpSize + threadIdx.x, c = lane * kWidth<T>;
  const int64_t batch = blockIdx.x / k.blocks;
  const int64_t tile = blockIdx.x % k.blocks * kRowThreads + threadIdx.y;
  const int64_t begin = k.first + tile * kBackwardSteps;
  const int64_t end = min(begin + kBackwardSteps, k.x.length);
  const int n = int(min(int64_t{kWidth<T>}, k.channels - c));
  Acc sums[kTaps + 1][kWidth<T>] = {};
  if (n > 0 && begin < end) {
    Weights<T, kTaps> weights;
    weights.read(k.w, k.b, c, n);
    Lane<T> u[kTaps], dp[kTaps];
#pragma unroll
    for (int j = 0; j < kTaps; ++j) {
      u[j] = j == 0 ? Lane<T>::zero()
                    : read_input<kAligned, kTaps>(k.x, k.state, batch, begin + j - kTaps, c, n);
      dp[j] = Lane<T>::zero();
    }
    for (int64_t s0 = begin; s0 < end + kPast; s0 += kAhead) {
      Words<T, kWidth<T>> rows[kAhead], slopes[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int64_t s = s0 + a;
        rows[a] = slopes[a] = Words<T, kWidth<T>>::zero();
        if (s >= 0 && s < k.x.length) {
          rows[a] = fetch<kAligned>(k.x.row(batch, s) + c, n);
          slopes[a] = fetch<kAligned>(k.dy.row(batch, s) + c, n);
        } else if (s < 0 && k.state.data) {
          rows[a] = fetch<kAligned>(k.state.row(batch, s + kPast) + c, n);
        }
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int64_t s = s0 + a;
        if (s >= end + kPast) break;
        push(u, widened<T>(rows[a]));
        Lane<T> slope = widened<T>(slopes[a]);
        if (k.silu) {
          const Lane<T> p = weights.convolve(u);
#pragma unroll
          for (int e = 0; e < kWidth<T>; ++e) {
            const Acc open = sigmoid<T>(p.v[e]);
            slope.v[e] *= open * (1 + p.v[e] * (1 - open));
          }
        }
        push(dp, slope);
        if (s < end) {
#pragma unroll
          for (int e = 0; e < kWidth<T>; ++e) {
#pragma unroll
            for (int tap = 0; tap < kTaps; ++tap) sums[tap][e] += slope.v[e] * u[tap].v[e];
            sums[kTaps][e] += slope.v[e];
          }
        }
        const int64_t t = s - kPast;
        if (t < begin) continue;
        Lane<T> du = Lane<T>::zero();
        if (k.dlast.data && t >= k.x.length - kPast)
          du = read<kAligned>(k.dlast.row(batch, t - k.x.length + kPast) + c, n);
#pragma unroll
        for (int e = 0; e < kWidth<T>; ++e) {
#pragma unroll
          for (int tap = 0; tap < kTaps; ++tap) du.v[e] += weights.w[tap][e] * dp[kPast - tap].v[e];
        }
        if (t >= 0)
          write<kAligned>(k.dx.row(batch, t) + c, du, n);
        else
          write<kAligned>(k.dstate.row(batch, t + kPast) + c, du, n);
      }
    }
  }
  // The block's rows are added by index.
  __shared__ Acc rows[kRowThreads][kWidth<T>][kWarpSize];
#pragma unroll
  for (int tap = 0; tap <= kTaps; ++tap) {
    __syncthreads();
#pragma unroll
    for (int e = 0; e < kWidth<T>; ++e) rows[threadIdx.y][e][threadIdx.x] = sums[tap][e];
    __syncthreads();
    if (threadIdx.y < kWidth<T>) {
      Acc sum = 0;
#pragma unroll
      for (int r = 0; r < kRowThreads; ++r) sum += rows[r][threadIdx.y][threadIdx.x];
      if (c + threadIdx.y < k.channels)
        k.partial[(int64_t{blockIdx.x} * (kTaps + 1) + tap) * k.channels + c + threadIdx.y] = sum;
    }
  }
}

/// dw and db from the parts, by index.
template <class Acc>
__global__ void conv1d_weights_kernel(const Acc* __restrict__ partial, int64_t parts,
                                      int64_t channels, int taps, Acc* dw, Acc* db) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= channels * (taps + 1)) return;
  Acc sum = 0;
#pragma unroll 8
  for (int64_t part = 0; part < parts; ++part) sum += partial[part * channels * (taps + 1) + i];
  const int64_t tap = i / channels, c = i % channels;
  if (tap < taps)
    dw[c * taps + tap] = sum;
  else if (db)
    db[c] = sum;
}

template <class F>
void visit_taps(int64_t taps, const F& f) {
  switch (taps) {
    case 1:
      return f.template operator()<1>();
    case 2:
      return f.template operator()<2>();
    case 3:
      return f.template operator()<3>();
    case 4:
      return f.template operator()<4>();
    case 5:
      return f.template operator()<5>();
    case 7:
      return f.template operator()<7>();
    case 8:
      return f.template operator()<8>();
    default:
      throw ValueError("causal_conv1d: on a GPU there are 1 to 5, 7 or 8 taps, but came {}", taps);
  }
}

template <class T, int kTaps>
void forward(Cuda on, const Conv1dForwardArgs& k) {
  using Acc = stats_t<T>;
  const int64_t channels = k.x.shape[2], length = k.x.shape[1], batch = k.x.shape[0];
  const auto x = Sequence<const T>::of(k.x), state = Sequence<const T>::of(k.state);
  const auto y = Sequence<T>::of(k.y);
  const int64_t lanes = ceil_div(channels, int64_t{kWidth<T>});
  const int64_t tiles = ceil_div(length, int64_t{kForwardSteps}), count = batch * tiles * lanes;
  const ForwardKernelArgs<T, kTaps> args{x,        state, k.w.as<Acc>(), k.b.as<Acc>(), y,
                                         channels, lanes, tiles,         count,         k.silu};
  const bool aligned = channels % kWidth<T> == 0 && x.aligned() && state.aligned() && y.aligned();
  launch(on, {.grid = grid_for(count, kForwardThreads), .block = dim3(kForwardThreads)},
         aligned ? conv1d_forward_kernel<T, kTaps, true> : conv1d_forward_kernel<T, kTaps, false>,
         args);
  if (!k.last_state.data) return;
  const int64_t n = batch * (kTaps - 1) * channels;
  launch(on, {.grid = grid_for(n, 256), .block = dim3(256)}, conv1d_last_state_kernel<T>, x, state,
         Sequence<T>::of(k.last_state), channels, int64_t{kTaps - 1}, n);
}

template <class T, int kTaps>
void backward(Cuda on, const Conv1dBackwardArgs& k) {
  using Acc = stats_t<T>;
  const int64_t channels = k.x.shape[2], length = k.x.shape[1], batch = k.x.shape[0];
  BackwardKernelArgs<T, kTaps> args{};
  args.dy = Sequence<const T>::of(k.dy), args.dlast = Sequence<const T>::of(k.dlast_state);
  args.x = Sequence<const T>::of(k.x), args.state = Sequence<const T>::of(k.state);
  args.dx = Sequence<T>::of(k.dx), args.dstate = Sequence<T>::of(k.dstate);
  args.w = k.w.as<Acc>(), args.b = k.b.as<Acc>(), args.silu = k.silu;
  args.channels = channels, args.lanes = ceil_div(channels, int64_t{kWidth<T>});
  args.first = k.dstate.data ? 1 - kTaps : 0;
  args.tiles = ceil_div(length - args.first, int64_t{kBackwardSteps});
  args.blocks = ceil_div(args.tiles, int64_t{kRowThreads});
  const int64_t parts = batch * args.blocks;
  const DeviceScratch<Acc> partial(on, parts * (kTaps + 1) * channels + 1);
  args.partial = partial.data();
  const bool aligned = channels % kWidth<T> == 0 && args.dy.aligned() && args.dlast.aligned() &&
                       args.x.aligned() && args.state.aligned() && args.dx.aligned() &&
                       args.dstate.aligned();
  launch(on,
         {.grid = dim3(unsigned(parts), unsigned(ceil_div(args.lanes, int64_t{kWarpSize}))),
          .block = dim3(kWarpSize, kRowThreads)},
         aligned ? conv1d_backward_kernel<T, kTaps, true> : conv1d_backward_kernel<T, kTaps, false>,
         args);
  const int64_t n = channels * (kTaps + 1);
  launch(on, {.grid = grid_for(n, 128), .block = dim3(128)}, conv1d_weights_kernel<Acc>,
         static_cast<const Acc*>(partial.data()), parts, channels, kTaps, k.dw.as<Acc>(),
         k.db.as<Acc>());
}

}  // namespace

void run(Cuda on, const Conv1dForwardArgs& k) {
  visit_floating(k.x.dtype, [&]<class T>() {
    visit_taps(k.w.shape[1], [&]<int kTaps>() { forward<T, kTaps>(on, k); });
  });
}
void run(Cuda on, const Conv1dBackwardArgs& k) {
  visit_floating(k.x.dtype, [&]<class T>() {
    visit_taps(k.w.shape[1], [&]<int kTaps>() { backward<T, kTaps>(on, k); });
  });
}

}  // namespace norma
