#include <algorithm>

#include "norma/core/cuda/launch.cuh"
#include "norma/core/cuda/numeric.cuh"
#include "norma/core/cuda/packed.cuh"
#include "norma/core/cuda/scratch.h"
#include "norma/core/cuda/side_stream.h"
#include "norma/core/cuda/words.cuh"
#include "norma/core/error.h"
#include "norma/ops/conv1d/kernels.h"

namespace norma {
namespace {

// A thread holds kWidth neighbouring channels and runs along time with the last K rows in
// registers; a warp's lanes lie side by side, so that a row is read in whole sectors. Some rows
// ahead are in flight all the time: a row's registers are loaded again as soon as it is in the
// window.
//   bytes  forward x and y, backward x, dy and dx, each once; K − 1 rows a tile again, from L2
//   bound  memory, where all threads run at once: a second, shorter wave would cost a fifth
// Four taps have kernels of their own, all others those of eight with the oldest left out.
constexpr int kRowThreads = 4;  // of a block, each with a tile of rows
constexpr int kThreads = kWarpSize * kRowThreads;
constexpr int kForwardAhead = 2;
constexpr int kTurn = 4;  // rows a turn: after four the window's registers are back
/// The backward pass has fewer threads: of half types eight rows ahead and a turn are 7 % faster.
template <class T, int kTaps>
constexpr int kBackwardAhead = sizeof(T) == 2 && kTaps == 4 ? 8 : 4;

/// Channels a thread where addresses allow it.
template <class T>
constexpr int kWide = 8 / int(sizeof(T));
/// Blocks a multiprocessor: a register file of 64 K is to hold them.
template <class T, int kTaps>
constexpr int kForwardBlocks = kTaps > 4 ? 4 : 8;
template <class T, int kTaps>
constexpr int kBackwardBlocks = kTaps > 4 || sizeof(T) == 8 ? 2
                                : sizeof(T) == 4            ? 4
                                                            : 3;

/// Rows cut into tiles, one a thread. Of the sizes alone, as the order of sums over rows follows
/// from them. A block's tiles may be of two sequences: where tiles come by whole blocks a sequence,
/// a backward pass has too few for the places on the multiprocessors, and up to half stay empty.
struct Tiles {
  int64_t steps, each, all;  // rows a tile, tiles a sequence, tiles

  /// By multiples of `together`, where there are several a sequence.
  template <class T>
  static Tiles of(int64_t batch, int64_t length, int64_t channels, int blocks, int together) {
    const int64_t beside =
        std::max<int64_t>(1, batch * ceil_div(channels, int64_t{kWide<T> * kWarpSize}));
    const int64_t places = 132 * blocks * kRowThreads / beside;
    const int64_t wanted = std::max<int64_t>(1, places / together) * together;
    const int64_t steps = std::clamp<int64_t>(ceil_div(length, wanted), 16, 256);
    const int64_t each = ceil_div(length, steps);
    return {steps, each, batch * each};
  }
  int64_t blocks() const { return ceil_div(all, int64_t{kRowThreads}); }
  __device__ int64_t own() const { return int64_t{blockIdx.x} * kRowThreads + threadIdx.y; }
};

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
  template <int kWidth>
  bool aligned() const {
    return !data ||
           (is_aligned<kWidth>(data) && batch_stride % kWidth == 0 && row_stride % kWidth == 0);
  }
};

/// kWidth values in Acc.
template <class T, int kWidth>
struct Lane {
  using Acc = stats_t<T>;
  Acc v[kWidth];

  __device__ __forceinline__ static Lane zero() {
    Lane lane;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) lane.v[i] = 0;
    return lane;
  }
};
template <class T, int kWidth>
__device__ __forceinline__ Lane<T, kWidth> widened(const Words<T, kWidth>& words) {
  Lane<T, kWidth> lane;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) lane.v[i] = convert<stats_t<T>>(words[i]);
  return lane;
}
template <class T, int kWidth>
__device__ __forceinline__ void write(T* to, const Lane<T, kWidth>& lane) {
  if constexpr (sizeof(T) == 2 && kWidth == 4) {
    *reinterpret_cast<uint2*>(to) =
        make_uint2(pack_pair<T>(lane.v[0], lane.v[1]), pack_pair<T>(lane.v[2], lane.v[3]));
  } else {
    Packed<T, kWidth> packed;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) packed[i] = convert<T>(lane.v[i]);
    store(to, packed);
  }
}

/// The taps and the bias of a thread's channels. The first kTaps − taps taps do not exist.
template <class T, int kTaps, int kWidth>
struct Weights {
  using Acc = stats_t<T>;
  Acc w[kTaps][kWidth], b[kWidth];
  int missing;

  /// A channel's taps lie side by side: one load where that is possible.
  __device__ __forceinline__ void read(const Acc* __restrict__ weight, const Acc* __restrict__ bias,
                                       int64_t c, int taps) {
    missing = kTaps - taps;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      b[i] = bias ? bias[c + i] : Acc(0);
      if constexpr (kTaps == 4) {
        if (is_aligned<4>(weight)) {
          const auto all = load<4>(weight + (c + i) * 4);
#pragma unroll
          for (int k = 0; k < 4; ++k) w[k][i] = all[k];
          continue;
        }
      }
#pragma unroll
      for (int k = 0; k < kTaps; ++k)
        w[k][i] = exists(k) ? weight[(c + i) * taps + k - missing] : Acc(0);
    }
  }
  __device__ __forceinline__ bool exists(int tap) const { return kTaps == 4 || tap >= missing; }
  /// b + Σ_k w_k ⊙ u_k, u the last K rows, the oldest first.
  __device__ __forceinline__ Lane<T, kWidth> convolve(const Lane<T, kWidth> (&u)[kTaps]) const {
    Lane<T, kWidth> p;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) p.v[i] = b[i];
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      if (!exists(k)) continue;  // 0 times what lies there might not be 0
#pragma unroll
      for (int i = 0; i < kWidth; ++i) p.v[i] += w[k][i] * u[k].v[i];
    }
    return p;
  }
};
template <int kTaps, int kWidth, class T>
__device__ __forceinline__ void push(Lane<T, kWidth> (&window)[kTaps],
                                     const Lane<T, kWidth>& newest) {
#pragma unroll
  for (int k = 0; k + 1 < kTaps; ++k) window[k] = window[k + 1];
  window[kTaps - 1] = newest;
}

/// x behind what lies before it, for one thread.
template <class T, int kWidth>
struct Input {
  Sequence<const T> x, state;
  int64_t batch, c;
  int past;

  /// Row t < length; zeros where there is none.
  __device__ __forceinline__ Words<T, kWidth> operator()(int64_t t) const {
    if (t >= 0) return Words<T, kWidth>::load(x.row(batch, t) + c);
    if (state.data && t >= -past) return Words<T, kWidth>::load(state.row(batch, t + past) + c);
    return Words<T, kWidth>::zero();
  }
};

template <class T>
struct ForwardKernelArgs {
  Sequence<const T> x, state;
  const stats_t<T>*w, *b;
  Sequence<T> y;
  int64_t channels;
  Tiles tiles;
  int taps;
  bool silu;
};

template <class T, int kTaps, int kWidth>
__global__ void __launch_bounds__(kThreads, kForwardBlocks<T, kTaps>)
    conv1d_forward_kernel(ForwardKernelArgs<T> k) {
  wait_for_previous_kernel();
  const int64_t c = (int64_t{blockIdx.y} * kWarpSize + threadIdx.x) * kWidth;
  const int64_t tile = k.tiles.own(), batch = tile / k.tiles.each;
  if (c >= k.channels || tile >= k.tiles.all) return;
  const int64_t begin = tile % k.tiles.each * k.tiles.steps;
  const int64_t end = min(begin + k.tiles.steps, k.x.length);
  Weights<T, kTaps, kWidth> weights;
  weights.read(k.w, k.b, c, k.taps);
  const Input<T, kWidth> input{k.x, k.state, batch, c, k.taps - 1};
  const int rows = int(end - begin);
  const T* x = k.x.row(batch, begin) + c;  // of the row that is loaded next
  T* y = k.y.row(batch, begin) + c;
  Words<T, kWidth> next[kForwardAhead];
#pragma unroll
  for (int a = 0; a < kForwardAhead; ++a, x += k.x.row_stride)
    next[a] = a < rows ? Words<T, kWidth>::load(x) : Words<T, kWidth>::zero();
  Lane<T, kWidth> u[kTaps];
  u[0] = Lane<T, kWidth>::zero();
#pragma unroll
  for (int j = 1; j < kTaps; ++j) u[j] = widened(input(begin + j - kTaps));
  const auto step = [&](bool more) {
    push(u, widened(next[0]));
#pragma unroll
    for (int a = 0; a + 1 < kForwardAhead; ++a) next[a] = next[a + 1];
    if (more) next[kForwardAhead - 1] = Words<T, kWidth>::load(x);
    x += k.x.row_stride;
    Lane<T, kWidth> p = weights.convolve(u);
    if (k.silu) {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) p.v[e] *= sigmoid_fast(p.v[e]);
    }
    write(y, p);
    y += k.y.row_stride;
  };
  int row = 0;
  for (; row + kTurn + kForwardAhead <= rows; row += kTurn) {
#pragma unroll
    for (int a = 0; a < kTurn; ++a) step(true);
  }
#pragma unroll 1
  for (; row < rows; ++row) step(row + kForwardAhead < rows);
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

template <class T>
struct BackwardKernelArgs {
  Sequence<const T> dy, dlast, x, state;
  const stats_t<T>*w, *b;
  Sequence<T> dx, dstate;
  stats_t<T>* partial;  // (row blocks, K + 1, C)
  int64_t channels;
  Tiles tiles;
  int64_t first;  // −(K − 1) where dstate is wanted, else 0
  int taps;
  bool silu;
};

/// A thread's rows of a backward pass, counted from its first. Step s makes dp_s; by then every dp
/// that reaches row s − K + 1 of dx is there.
template <class T, int kTaps, int kWidth>
struct BackwardWalk {
  using Acc = stats_t<T>;
  static constexpr int kAhead = kBackwardAhead<T, kTaps>;
  const BackwardKernelArgs<T>& k;
  const Input<T, kWidth> input;
  const int64_t begin;
  const int own;            // rows whose dp this thread adds up
  const int before, there;  // x's rows are before … there − 1
  const int inside;         // steps up to here need no question
  const T *x, *dy;          // of the row that is loaded next
  T* dx;                    // of the row that is written next
  Weights<T, kTaps, kWidth> weights = {};
  Lane<T, kWidth> u[kTaps] = {}, dp[kTaps] = {};
  Words<T, kWidth> rows[kAhead] = {}, slopes[kAhead] = {};
  Acc sums[kTaps + 1][kWidth] = {};  // of dw, then db

  __device__ __forceinline__ bool real(int s) const { return s >= before && s < there; }
  template <bool kInside>
  __device__ __forceinline__ void fetch(int a, int s) {
    if (kInside || real(s)) {
      rows[a] = Words<T, kWidth>::load(x), slopes[a] = Words<T, kWidth>::load(dy);
    } else {
      rows[a] = s < before ? input(begin + s) : Words<T, kWidth>::zero();
      slopes[a] = Words<T, kWidth>::zero();
    }
    x += k.x.row_stride, dy += k.dy.row_stride;
  }
  __device__ __forceinline__ void run() {
    weights.read(k.w, k.b, input.c, k.taps);
    const int stop = own + kTaps - 1;
#pragma unroll
    for (int a = 0; a < kAhead; ++a) fetch<false>(a, a);
#pragma unroll
    for (int j = 1; j < kTaps; ++j) u[j] = widened(input(begin + j - kTaps));
    int s = 0;
#pragma unroll 1
    for (; s < min(before + kTaps - 1, stop); ++s) step<false>(s, stop);
    for (; s + kAhead <= inside; s += kAhead) {
#pragma unroll
      for (int a = 0; a < kAhead; ++a) step<true>(s + a, stop);
    }
#pragma unroll 1
    for (; s < stop; ++s) step<false>(s, stop);
  }
  /// `kInside`: row s and those fetched now are real, its dp this thread's, and the row of dx that
  /// it completes an inner one.
  template <bool kInside>
  __device__ __forceinline__ void step(int s, int stop) {
    push(u, widened(rows[0]));
    const Lane<T, kWidth> slope = widened(slopes[0]);
#pragma unroll
    for (int a = 0; a + 1 < kAhead; ++a) rows[a] = rows[a + 1], slopes[a] = slopes[a + 1];
    if (kInside || s + kAhead < stop) fetch<kInside>(kAhead - 1, s + kAhead);
    push(dp, kInside || real(s) ? through_silu(slope) : Lane<T, kWidth>::zero());
    if (kInside || s < own) add_up();
    if (kInside || s >= kTaps - 1) write_gradient<kInside>(s - (kTaps - 1));
  }
  __device__ __forceinline__ Lane<T, kWidth> through_silu(Lane<T, kWidth> slope) const {
    if (!k.silu) return slope;
    const Lane<T, kWidth> p = weights.convolve(u);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      const Acc open = sigmoid_fast(p.v[e]);
      slope.v[e] *= open * (1 + p.v[e] * (1 - open));
    }
    return slope;
  }
  __device__ __forceinline__ void add_up() {
    const Lane<T, kWidth>& slope = dp[kTaps - 1];
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) sums[tap][e] += slope.v[e] * u[tap].v[e];
      sums[kTaps][e] += slope.v[e];
    }
  }
  template <bool kInside>
  __device__ __forceinline__ void write_gradient(int t) {
    Lane<T, kWidth> du = Lane<T, kWidth>::zero();
    if (!kInside && k.dlast.data && t >= there - input.past)
      du = widened(
          Words<T, kWidth>::load(k.dlast.row(input.batch, t - there + input.past) + input.c));
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      if (!weights.exists(tap)) continue;
#pragma unroll
      for (int e = 0; e < kWidth; ++e) du.v[e] += weights.w[tap][e] * dp[kTaps - 1 - tap].v[e];
    }
    if (kInside || t >= before)
      write(dx, du);
    else
      write(k.dstate.row(input.batch, begin + t + input.past) + input.c, du);
    dx += k.dx.row_stride;
  }
};

template <class T, int kTaps, int kWidth>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<T, kTaps>)
    conv1d_backward_kernel(BackwardKernelArgs<T> k) {
  using Acc = stats_t<T>;
  wait_for_previous_kernel();
  const int64_t c = (int64_t{blockIdx.y} * kWarpSize + threadIdx.x) * kWidth;
  const int64_t tile = k.tiles.own(), batch = tile / k.tiles.each, steps = k.tiles.steps;
  const int64_t begin = k.first + tile % k.tiles.each * steps;
  const int64_t left = k.x.length - begin;  // at least the rows that a thread looks at, or all
  BackwardWalk<T, kTaps, kWidth> walk{k,
                                      {k.x, k.state, batch, c, k.taps - 1},
                                      begin,
                                      int(min(steps, left)),
                                      begin < 0 ? -int(begin) : 0,
                                      int(min(steps + kTaps + k.taps, left)),
                                      int(min(steps, left - kTaps - kBackwardAhead<T, kTaps>)),
                                      k.x.row(batch, begin) + c,
                                      k.dy.row(batch, begin) + c,
                                      k.dx.row(batch, begin) + c};
  if (c < k.channels && tile < k.tiles.all) walk.run();
  // The block's rows are added by index.
  __shared__ Acc rows[kRowThreads][kWidth][kWarpSize];
  const int missing = kTaps - k.taps;
#pragma unroll
  for (int tap = 0; tap <= kTaps; ++tap) {
    if (tap < missing) continue;
    __syncthreads();
#pragma unroll
    for (int e = 0; e < kWidth; ++e) rows[threadIdx.y][e][threadIdx.x] = walk.sums[tap][e];
    __syncthreads();
    if (threadIdx.y < kWidth && c + threadIdx.y < k.channels) {
      Acc sum = 0;
#pragma unroll
      for (int r = 0; r < kRowThreads; ++r) sum += rows[r][threadIdx.y][threadIdx.x];
      k.partial[(int64_t{blockIdx.x} * (k.taps + 1) + tap - missing) * k.channels + c +
                threadIdx.y] = sum;
    }
  }
}

/// dw and db from the parts: kRuns runs of them by index, then the runs.
constexpr int kRuns = 8;
template <class Acc>
__global__ void __launch_bounds__(kWarpSize* kRuns)
    conv1d_weights_kernel(const Acc* __restrict__ partial, int64_t parts, int64_t channels,
                          int taps, Acc* dw, Acc* db) {
  __shared__ Acc sums[kRuns][kWarpSize];
  const int64_t i = int64_t{blockIdx.x} * kWarpSize + threadIdx.x, n = channels * (taps + 1);
  const int64_t each = (parts + kRuns - 1) / kRuns, begin = threadIdx.y * each;
  Acc sum = 0;
  wait_for_previous_kernel();
  if (i < n) {
#pragma unroll 4
    for (int64_t part = begin; part < min(begin + each, parts); ++part)
      sum += partial[part * n + i];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || i >= n) return;
  for (int run = 1; run < kRuns; ++run) sum += sums[run][threadIdx.x];
  const int64_t tap = i / channels, c = i % channels;
  if (tap < taps)
    dw[c * taps + tap] = sum;
  else if (db)
    db[c] = sum;
}

template <class T, class F>
void visit_plan(int64_t taps, bool aligned, const F& f) {
  if (taps > 8)
    throw ValueError("causal_conv1d: on a GPU there are 1 to 8 taps, but came {}", taps);
  const auto with = [&]<int kWidth>() {
    return taps == 4 ? f.template operator()<4, kWidth>() : f.template operator()<8, kWidth>();
  };
  return aligned ? with.template operator()<kWide<T>>() : with.template operator()<1>();
}

template <class T>
void forward(Cuda on, const Conv1dForwardArgs& k) {
  using Acc = stats_t<T>;
  const int64_t batch = k.x.shape[0], length = k.x.shape[1], channels = k.x.shape[2];
  const int taps = int(k.w.shape[1]);
  const auto x = Sequence<const T>::of(k.x), state = Sequence<const T>::of(k.state);
  const auto y = Sequence<T>::of(k.y);
  if (batch * length * channels > 0) {
    const auto tiles = Tiles::of<T>(batch, length, channels, kForwardBlocks<T, 4>, kRowThreads);
    const ForwardKernelArgs<T> args{x,        state, k.w.as<Acc>(), k.b.as<Acc>(), y,
                                    channels, tiles, taps,          k.silu};
    const bool aligned = channels % kWide<T> == 0 && x.template aligned<kWide<T>>() &&
                         state.template aligned<kWide<T>>() && y.template aligned<kWide<T>>();
    visit_plan<T>(taps, aligned, [&]<int kTaps, int kWidth>() {
      launch(on,
             {.grid = dim3(unsigned(tiles.blocks()),
                           unsigned(ceil_div(channels, int64_t{kWarpSize * kWidth}))),
              .block = dim3(kWarpSize, kRowThreads),
              .overlap = sizeof(T) == 2},  // of float32 it took 3 % longer
             conv1d_forward_kernel<T, kTaps, kWidth>, args);
    });
  }
  if (!k.last_state.data) return;
  const int64_t n = batch * (taps - 1) * channels;
  launch(on, {.grid = grid_for(n, 256), .block = dim3(256)}, conv1d_last_state_kernel<T>, x, state,
         Sequence<T>::of(k.last_state), channels, int64_t{taps - 1}, n);
}

template <class T>
void backward(Cuda on, const Conv1dBackwardArgs& k) {
  using Acc = stats_t<T>;
  const int64_t batch = k.x.shape[0], length = k.x.shape[1], channels = k.x.shape[2];
  BackwardKernelArgs<T> args{};
  args.dy = Sequence<const T>::of(k.dy), args.dlast = Sequence<const T>::of(k.dlast_state);
  args.x = Sequence<const T>::of(k.x), args.state = Sequence<const T>::of(k.state);
  args.dx = Sequence<T>::of(k.dx), args.dstate = Sequence<T>::of(k.dstate);
  args.w = k.w.as<Acc>(), args.b = k.b.as<Acc>(), args.silu = k.silu;
  args.channels = channels, args.taps = int(k.w.shape[1]);
  args.first = k.dstate.data ? 1 - args.taps : 0;
  args.tiles = Tiles::of<T>(batch, length - args.first, channels, kBackwardBlocks<T, 4>, 1);
  const int64_t parts = args.tiles.blocks(), n = channels * (args.taps + 1);
  const DeviceScratch<Acc> partial(on, parts * n + 1);
  args.partial = partial.data();
  const auto wide = [](const auto& s) { return s.template aligned<kWide<T>>(); };
  const bool aligned = channels % kWide<T> == 0 && wide(args.dy) && wide(args.dlast) &&
                       wide(args.x) && wide(args.state) && wide(args.dx) && wide(args.dstate);
  visit_plan<T>(args.taps, aligned, [&]<int kTaps, int kWidth>() {
    launch(
        on,
        {.grid = dim3(unsigned(parts), unsigned(ceil_div(channels, int64_t{kWarpSize * kWidth}))),
         .block = dim3(kWarpSize, kRowThreads),
         .overlap = true},
        conv1d_backward_kernel<T, kTaps, kWidth>, args);
  });
  // Nobody waits for a weight's gradient: it goes beside what comes next, where that may be.
  const bool aside = detail::may_go_aside();
  launch(aside ? detail::go_aside(on) : on,
         {.grid = grid_for(n, kWarpSize), .block = dim3(kWarpSize, kRuns), .overlap = !aside},
         conv1d_weights_kernel<Acc>, static_cast<const Acc*>(partial.data()), parts, channels,
         args.taps, k.dw.as<Acc>(), k.db.as<Acc>());
}

}  // namespace

void run(Cuda on, const Conv1dForwardArgs& k) {
  visit_floating(k.x.dtype, [&]<class T>() { forward<T>(on, k); });
}
void run(Cuda on, const Conv1dBackwardArgs& k) {
  visit_floating(k.x.dtype, [&]<class T>() { backward<T>(on, k); });
}

}  // namespace norma
