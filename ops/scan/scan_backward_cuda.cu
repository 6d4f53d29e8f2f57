#include "norma/ops/scan/scan_cuda.cuh"

namespace norma {
namespace scan_cuda {
namespace {

// Tiles from the last to the first. In a tile the states run forward once, those before every
// kQuad steps are kept, and these steps are computed again in registers on the way back. db and dc
// are sums over channels: over a warp's by exchange between lanes, over the block's four warps
// through shared memory, over blocks by a kernel of their own, all in a fixed order.

constexpr int kWarps = kThreads / kWarpSize;

template <class T>
struct BackwardKernelArgs {
  Sizes size;
  bool dt_softplus, log_a;
  Sequence<const T> dy, x, dt, b, c, z;
  const stats_t<T>*a, *d, *dt_bias, *chunk_states, *dlast_state;
  const stats_t<T>* carried;  // (B, segments, N, E), or null where there is one segment
  Sequence<T> dx, ddt, dz;
  stats_t<T>* dstate;
  stats_t<T>* over_channels;  // (blocks, B, T, 2, kN): dc, then db
  stats_t<T>* over_batch;     // (B, segments, N + 2, E): da, dd, ddt_bias
};

/// Lanes beside each other in a warp with the same states of different channels.
template <class P>
constexpr int kSide = kWarpSize / P::kLanes;
/// Whether the states before a quad, once read, make room for what its warps have of db and dc: a
/// tile's are then added together, else one quad's, into one of two halves in turn.
template <class P>
constexpr bool kPartsWait = P::kQuad * 2 * P::kN <= kWarpSize* P::kStates;

/// Of a multiprocessor.
template <class T, class P>
constexpr int kBlocks = sizeof(T) == 8 || P::kN > 64 ? 1
                        : P::kN > 16                 ? 2
                                                     : 3;

template <class T, class P, bool kWait = kPartsWait<P>>
struct PartsShared {
  stats_t<T> part[2][kWarps][P::kQuad][2][P::kN];
};
template <class T, class P>
struct PartsShared<T, P, true> {};

template <class T, class P>
struct BackwardShared : PartsShared<T, P> {
  using Acc = stats_t<T>;
  SharedStates<T, P, kCopies<P::kStates, kSide<P>>> b, c;
  Acc before[kSteps / P::kQuad][kThreads][P::kStates];  // states before every kQuad steps
  // Δ, Δ x and the slope behind the gate; then ddt, dx and y, each in place.
  TurnedTile<P, Acc> delta, input, slope;
  Acc bias[P::kChannels];
  alignas(16) T x[kSteps][P::kChannels + (sizeof(T) == 2 ? 8 : 0)];
};

/// As many blocks as registers allow are to fit into 228 KB, of which each takes one more.
static_assert(kBlocks<float, Plan<4, 4>> * (sizeof(BackwardShared<float, Plan<4, 4>>) + 1024) <=
              228 * 1024);
static_assert(kBlocks<BFloat16, Plan<16, 4>> *
                  (sizeof(BackwardShared<BFloat16, Plan<16, 4>>) + 1024) <=
              228 * 1024);

/// Over warps the parts of db and dc of some quads from t0 on, which are kApart from each other; a
/// step's are behind the one's before, here and in memory.
template <class T, class P, int kApart>
__device__ __forceinline__ void add_parts(const BackwardKernelArgs<T>& k,
                                          const stats_t<T>* __restrict__ part, int quads,
                                          int64_t batch, int64_t block, int64_t t0) {
  using Acc = stats_t<T>;
  constexpr int kStep = 2 * P::kN, kEach = P::kQuad * kStep, kWide = kWidest<Acc>;
  Acc* to = k.over_channels + ((block * k.size.batch + batch) * k.size.length + t0) * kStep;
  const int real = int(min(k.size.length - t0, int64_t{kSteps})) * kStep;
#pragma unroll 1
  for (int i = int(threadIdx.x) * kWide; i < quads * kEach; i += kThreads * kWide) {
    const Acc* from = part + i / kEach * kApart + i % kEach;
    Acc sum[kWide];
    get_run(from, sum);
#pragma unroll
    for (int w = 1; w < kWarps; ++w) {
      const auto more = load<kWide>(from + w * kEach);
#pragma unroll
      for (int e = 0; e < kWide; ++e) sum[e] += more[e];
    }
    if (i < real) rounded<Acc>(sum).store_global(to + i);
  }
}

template <class T, class P, bool kWhole>
__global__ void __launch_bounds__(kThreads, kBlocks<T, P>)
    scan_backward_kernel(BackwardKernelArgs<T> k) {
  using Acc = stats_t<T>;
  constexpr int kLanes = P::kLanes, kStates = P::kStates, kPer = P::kPer;
  constexpr int kSharing = kLanes / P::kQuad;  // lanes that hold the same sums over states
  constexpr Acc kLn2 = Acc(0.6931471805599453);
  using Turned = TurnedTile<P, Acc>;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<BackwardShared<T, P>*>(memory);
  const Sizes& s = k.size;
  const int64_t batch = blockIdx.x / s.blocks, block = blockIdx.x % s.blocks;
  const int64_t segment = blockIdx.y;
  const int64_t first_channel = block * P::kChannels;
  const int64_t chunks = (s.length + kSteps - 1) / kSteps;

  const int lane = threadIdx.x % kLanes, own = threadIdx.x / kLanes, first = lane * kStates;
  const int warp = threadIdx.x / kWarpSize, lane_side = threadIdx.x / kLanes % kSide<P>;
  const int64_t channel = first_channel + own;
  const bool exists = kWhole || channel < s.channels;
  const int turn = turn_of<kStates, kSide<P>, kLanes>();  // register i is state first + (i ^ turn)
  const int copy = turn / (kStates / kCopies<kStates, kSide<P>>);
  Acc a[kStates], g[kStates], da[kStates];
#pragma unroll
  for (int i = 0; i < kStates; ++i) {
    const int n = first + (i ^ turn);
    const bool real = exists && n < s.n;
    a[i] = real ? rate_of(k.a[channel * s.n + n], k.log_a) / kLn2 : Acc(0);
    g[i] = da[i] = 0;
    if (real && k.carried)
      g[i] = k.carried[((batch * s.segments + segment) * s.n + n) * s.channels + channel];
    else if (real && k.dlast_state)
      g[i] = k.dlast_state[(batch * s.channels + channel) * s.n + n];
  }

  const int row = threadIdx.x / 4, column = threadIdx.x % 4 * kPer;
  const int count = int(min(int64_t{kPer}, s.channels - first_channel - column));
  for (int i = threadIdx.x; i < P::kChannels; i += kThreads) {
    const bool real = first_channel + i < s.channels;
    shared.bias[i] = k.dt_bias && real ? k.dt_bias[first_channel + i] : Acc(0);
  }
  __syncthreads();
  const Acc d = k.d && exists ? k.d[channel] : Acc(0);
  Acc dd = 0, ddt_bias = 0;
  Words<T, kPer> x, dt, dy, z;
  States<P, kWhole, T> b, c;
  Acc earlier[kStates];  // states before the tile
  const auto fetch_tile = [&](int64_t t0, bool wanted) {
    const Acc* from = k.chunk_states + (batch * chunks + t0 / kSteps) * s.n * s.channels + channel;
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      const int n = first + (i ^ turn);
      earlier[i] = wanted && exists && n < s.n ? from[n * s.channels] : Acc(0);
    }
    const int64_t at = first_channel + column;
    const int n = wanted && t0 + row < s.length ? count : 0;
    x = fetch<kPer, kWhole>(k.x.row(batch, t0 + row) + at, n, s.aligned);
    dt = fetch<kPer, kWhole>(k.dt.row(batch, t0 + row) + at, n, s.aligned);
    dy = fetch<kPer, kWhole>(k.dy.row(batch, t0 + row) + at, n, s.aligned);
    z = fetch<kPer, kWhole>(k.z.row(batch, t0 + row) + at, k.z.data ? n : 0, s.aligned);
    b.read(k.b, s, batch, t0, wanted);
    c.read(k.c, s, batch, t0, wanted);
  };

  /// Where a warp leaves what it has of a quad's db and dc.
  const auto parts_of = [&](int quad) -> Acc* {
    if constexpr (kPartsWait<P>)
      return &shared.before[quad][warp * kWarpSize][0];
    else
      return &shared.part[quad % 2][warp][0][0][0];
  };
  const int64_t begin = s.begin(segment) / kSteps;
  const int64_t end = (s.end(segment) + kSteps - 1) / kSteps;
  fetch_tile((end - 1) * kSteps, true);
  for (int64_t chunk = end - 1; chunk >= begin; --chunk) {
    const int64_t t0 = chunk * kSteps;
    const int steps = int(min(s.length - t0, int64_t{kSteps}));
    Acc h[kStates];
#pragma unroll
    for (int i = 0; i < kStates; ++i) h[i] = earlier[i];
    Acc gate_slopes[kPer], deltas[kPer], inputs[kPer], slopes[kPer], bias[kPer];
    get_run(&shared.bias[column], bias);
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      deltas[i] = convert<Acc>(dt[i]) + bias[i];
      slopes[i] = convert<Acc>(dy[i]);
    }
    if (k.z.data) {
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
        const Acc gate = convert<Acc>(z[i]), open = sigmoid_fast(gate);
        gate_slopes[i] = slopes[i] * open * (1 + gate * (1 - open));
        slopes[i] *= gate * open;
      }
    }
    make_steps(deltas, k.dt_softplus, t0 + row < s.length);
#pragma unroll
    for (int i = 0; i < kPer; ++i) inputs[i] = deltas[i] * convert<Acc>(x[i]);
    shared.delta.put_row(row, column, deltas);
    shared.input.put_row(row, column, inputs);
    x.store(&shared.x[row][column]);
    shared.slope.put_row(row, column, slopes);
    b.put(k.b, s, batch, t0, shared.b.v);
    c.put(k.c, s, batch, t0, shared.c.v);
    __syncthreads();
    fetch_tile(t0 - kSteps, chunk > begin);

#pragma unroll 1
    for (int quad = 0; quad < kSteps / P::kQuad; ++quad) {
      put_run(&shared.before[quad][threadIdx.x][0], h);
      if (quad == kSteps / P::kQuad - 1) break;
      Acc delta[P::kQuad], input[P::kQuad];
      const int place = Turned::place(quad * P::kQuad, own);
      get_run(&shared.delta.v[place], delta);
      get_run(&shared.input.v[place], input);
#pragma unroll
      for (int j = 0; j < P::kQuad; ++j) {
        Acc into[kStates];
        read_states(shared.b, k.b, s, batch, t0, quad * P::kQuad + j, copy, first, into);
#pragma unroll
        for (int i = 0; i < kStates; ++i)
          h[i] = exp2_fast(delta[j] * a[i]) * h[i] + input[j] * into[i];
      }
    }

#pragma unroll 1
    for (int quad = kSteps / P::kQuad - 1; quad >= 0; --quad) {
      Acc states[P::kQuad + 1][kStates], fade[P::kQuad][kStates];
      Acc y[P::kQuad], dinput[P::kQuad], fading[P::kQuad], delta[P::kQuad], input[P::kQuad];
      Acc slope[P::kQuad];
      const int place = Turned::place(quad * P::kQuad, own);
      get_run(&shared.delta.v[place], delta);
      get_run(&shared.input.v[place], input);
      get_run(&shared.slope.v[place], slope);
      read_states(&shared.before[quad][threadIdx.x][0], states[0]);
      __syncwarp();  // what was read makes room: for parts, and for the quad's results
#pragma unroll
      for (int j = 0; j < P::kQuad; ++j) {
        Acc into[kStates];
        read_states(shared.b, k.b, s, batch, t0, quad * P::kQuad + j, copy, first, into);
#pragma unroll
        for (int i = 0; i < kStates; ++i) {
          fade[j][i] = exp2_fast(delta[j] * a[i]);
          states[j + 1][i] = fade[j][i] * states[j][i] + input[j] * into[i];
        }
      }
#pragma unroll
      for (int j = P::kQuad - 1; j >= 0; --j) {
        const int t = quad * P::kQuad + j;
        Acc into[kStates], out[kStates], dc[kStates], db[kStates];
        y[j] = dinput[j] = fading[j] = 0;
        read_states(shared.b, k.b, s, batch, t0, t, copy, first, into);
        read_states(shared.c, k.c, s, batch, t0, t, copy, first, out);
#pragma unroll
        for (int i = 0; i < kStates; ++i) {
          y[j] += states[j + 1][i] * out[i];
          g[i] += slope[j] * out[i];
          dc[i] = states[j + 1][i] * slope[j];
          db[i] = g[i] * input[j];
          dinput[j] += g[i] * into[i];
          g[i] *= fade[j][i];
          const Acc p = g[i] * states[j][i];
          fading[j] += p * a[i];
          da[i] += p * delta[j];
        }
        sum_over_channels<kStates, kSide<P>, kLanes>(dc, db);
        Acc* part = parts_of(quad) + j * 2 * P::kN + first;
        if constexpr (kSide<P> == 2 * kStates) {
          part[(lane_side & 1) * P::kN + turn] = dc[0];
        } else {
          constexpr int kKeep = kStates / kSide<P>;
#pragma unroll
          for (int i = 0; i < kKeep; ++i) {
            part[i ^ turn] = dc[i];
            part[P::kN + (i ^ turn)] = db[i];
          }
        }
      }
      scatter_sum<P::kQuad, kLanes, 1>(y);
      scatter_sum<P::kQuad, kLanes, 1>(dinput);
      scatter_sum<P::kQuad, kLanes, 1>(fading);
      if (lane % kSharing == 0) {  // of one step each, what follows from the sums
        const int mine = lane / kSharing, at = place + mine;
        const Acc x_own = convert<Acc>(shared.x[quad * P::kQuad + mine][own]);
        const Acc delta_own = shared.delta.v[at], slope_own = shared.slope.v[at];
        Acc ddt = dinput[0] * x_own + fading[0] * kLn2;
        if (k.dt_softplus)
          ddt *= softplus_slope<T>(delta_own);  // 0 beyond the end
        else if (quad * P::kQuad + mine >= steps)
          ddt = 0;
        dd += slope_own * x_own;
        ddt_bias += ddt;
        shared.delta.v[at] = ddt;
        shared.input.v[at] = dinput[0] * delta_own + slope_own * d;
        shared.slope.v[at] = y[0] + d * x_own;
      }
      if constexpr (!kPartsWait<P>) {
        __syncthreads();  // the other half of `part` is free again after the next one
        add_parts<T, P, 0>(k, &shared.part[quad % 2][0][0][0][0], 1, batch, block,
                           t0 + quad * P::kQuad);
      }
    }
    if constexpr (kPartsWait<P>) {
      __syncthreads();
      add_parts<T, P, kThreads * kStates>(k, &shared.before[0][0][0], kSteps / P::kQuad, batch,
                                          block, t0);
    }

    if (t0 + row < s.length) {
      const int64_t at = first_channel + column;
      Acc ddt[kPer], dx[kPer], y[kPer];
      shared.delta.get_row(row, column, ddt);
      shared.input.get_row(row, column, dx);
      write<kWhole>(k.dx.row(batch, t0 + row) + at, rounded<T>(dx), count, s.aligned);
      write<kWhole>(k.ddt.row(batch, t0 + row) + at, rounded<T>(ddt), count, s.aligned);
      if (k.z.data) {
        shared.slope.get_row(row, column, y);
#pragma unroll
        for (int i = 0; i < kPer; ++i) y[i] *= gate_slopes[i];
        write<kWhole>(k.dz.row(batch, t0 + row) + at, rounded<T>(y), count, s.aligned);
      }
    }
    __syncthreads();
  }

  // Sums over time: da lies with the states' owners, dd and ddt_bias with the steps'.
  Acc* to = k.over_batch + (batch * s.segments + segment) * (s.n + 2) * s.channels;
#pragma unroll
  for (int i = 0; i < kStates; ++i) {
    const int n = first + (i ^ turn);
    if (!exists || n >= s.n) continue;
    to[n * s.channels + channel] = da[i];
    if (k.dstate && segment == 0) k.dstate[(batch * s.channels + channel) * s.n + n] = g[i];
  }
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    dd += __shfl_xor_sync(0xffffffffu, dd, step);
    ddt_bias += __shfl_xor_sync(0xffffffffu, ddt_bias, step);
  }
  if (!exists || lane != 0) return;
  to[s.n * s.channels + channel] = dd;
  to[(s.n + 1) * s.channels + channel] = ddt_bias;
}

/// The distance of neighbouring rows of (B, T, N).
int64_t row_stride(const View& t) { return t.shape[1] > 1 ? t.strides[1] : t.strides[0]; }

/// Sums over what blocks have left: db and dc (B, T, N), then, by the grid's last blocks, da (E,
/// N), dd and ddt_bias (E). With log_a (E, N) da is its gradient, a da.
template <class T>
struct SumsKernelArgs {
  using Acc = stats_t<T>;
  const Acc *over_channels, *over_batch;  // (blocks, rows, 2, padded), (count, N + 2, E)
  int64_t blocks, rows, count, channels;
  int n, padded;
  const Acc* log_a;
  T *db, *dc;
  int64_t db_stride, dc_stride;
  Acc *da, *dd, *ddt_bias;

  __device__ void sum_channels(int64_t i) const {
    const int64_t per_row = 2 * padded;
    if (i >= rows * per_row) return;
    Acc sum = 0;
#pragma unroll 8
    for (int64_t block = 0; block < blocks; ++block)
      sum += over_channels[block * rows * per_row + i];
    const int64_t row = i / per_row, at = i % padded;
    if (at >= n) return;
    (i % per_row < padded ? dc + row * dc_stride : db + row * db_stride)[at] = convert<T>(sum);
  }
  __device__ void sum_batch(int64_t i) const {
    if (i >= (n + 2) * channels) return;
    Acc sum = 0;
#pragma unroll 8
    for (int64_t j = 0; j < count; ++j) sum += over_batch[j * (n + 2) * channels + i];
    const int64_t at = i / channels, channel = i % channels, cell = channel * n + at;
    if (at < n)
      da[cell] = log_a ? sum * rate_of(log_a[cell], true) : sum;
    else if (Acc* to = at == n ? dd : ddt_bias)
      to[channel] = sum;
  }
};
constexpr int kSumThreads = 256;
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    scan_sums_kernel(SumsKernelArgs<T> k, int64_t of_channels) {
  const int64_t block = blockIdx.x;
  if (block < of_channels)
    k.sum_channels(block * kSumThreads + threadIdx.x);
  else
    k.sum_batch((block - of_channels) * kSumThreads + threadIdx.x);
}

template <class T, class P>
void backward(Cuda on, const ScanBackwardArgs& k) {
  using Acc = stats_t<T>;
  BackwardKernelArgs<T> args{};
  args.dt_softplus = k.dt_softplus, args.log_a = k.log_a;
  args.dy = Sequence<const T>::of(k.dy), args.x = Sequence<const T>::of(k.x);
  args.dt = Sequence<const T>::of(k.dt), args.z = Sequence<const T>::of(k.z);
  args.b = Sequence<const T>::of(k.b), args.c = Sequence<const T>::of(k.c);
  args.dx = Sequence<T>::of(k.dx), args.ddt = Sequence<T>::of(k.ddt);
  args.dz = Sequence<T>::of(k.dz);
  args.a = k.a.as<Acc>(), args.d = k.d.as<Acc>(), args.dt_bias = k.dt_bias.as<Acc>();
  args.chunk_states = k.chunk_states.as<Acc>(), args.dlast_state = k.dlast_state.as<Acc>();
  args.dstate = k.dstate.as<Acc>();
  constexpr int kWide = P::kPer < kWidest<T> ? P::kPer : kWidest<T>;
  bool aligned = args.dx.aligned(kWide) && args.ddt.aligned(kWide) && args.dz.aligned(kWide);
  aligned = aligned && args.dy.aligned(kWide) && args.x.aligned(kWide) && args.dt.aligned(kWide) &&
            args.z.aligned(kWide);
  const int64_t batch = k.x.shape[0], length = k.x.shape[1], channels = k.x.shape[2];
  const int64_t blocks = ceil_div(channels, int64_t{P::kChannels}), rows = batch * length;
  const int n = int(k.a.shape[1]);
  Sizes& s = args.size;
  s = {batch, length, channels, blocks, n, aligned, args.b.aligned(4) && args.c.aligned(4)};
  s.cut(132 * kBlocks<T, P>);
  CarryArgs<T> carry{s,      k.dt_softplus, k.log_a,      args.dt,          args.dy, args.c,
                     args.z, args.a,        args.dt_bias, args.dlast_state, nullptr, nullptr};
  const DeviceScratch<Acc> carried(on, s.segments > 1 ? carry.numbers() : 1);
  if (s.segments > 1) {
    carry.carried = carried.data();
    carry.sums = carried.data() + s.batch * s.segments * s.n * s.channels;
    carry_against(on, carry);
    args.carried = carry.carried;
  }
  const DeviceScratch<Acc> over_channels(on, blocks * rows * 2 * P::kN + 1);
  const DeviceScratch<Acc> over_batch(on, batch * s.segments * (n + 2) * channels + 1);
  args.over_channels = over_channels.data(), args.over_batch = over_batch.data();
  const auto with = [&]<bool kWhole>() {
    launch(on,
           {.grid = dim3(unsigned(batch * blocks), unsigned(s.segments)),
            .block = dim3(kThreads),
            .shared = sizeof(BackwardShared<T, P>)},
           scan_backward_kernel<T, P, kWhole>, args);
  };
  if constexpr (kHasWhole<T, P>)
    s.whole<P>() ? with.template operator()<true>() : with.template operator()<false>();
  else
    with.template operator()<false>();
  const SumsKernelArgs<T> sums{over_channels.data(),
                               over_batch.data(),
                               blocks,
                               rows,
                               batch * s.segments,
                               channels,
                               n,
                               P::kN,
                               k.log_a ? args.a : nullptr,
                               k.db.as<T>(),
                               k.dc.as<T>(),
                               row_stride(k.db),
                               row_stride(k.dc),
                               k.da.as<Acc>(),
                               k.dd.as<Acc>(),
                               k.ddt_bias.as<Acc>()};
  const int64_t of_channels = ceil_div(rows * 2 * P::kN, int64_t{kSumThreads});
  const int64_t of_batch = ceil_div((n + 2) * channels, int64_t{kSumThreads});
  launch(on, {.grid = dim3(unsigned(of_channels + of_batch)), .block = dim3(kSumThreads)},
         scan_sums_kernel<T>, sums, of_channels);
}

}  // namespace
}  // namespace scan_cuda

void run(Cuda on, const ScanBackwardArgs& k) {
  visit_floating(k.x.dtype, [&]<class T>() {
    scan_cuda::visit_plan<T>(k.a.shape[1], [&]<class P>() { scan_cuda::backward<T, P>(on, k); });
  });
}

}  // namespace norma
