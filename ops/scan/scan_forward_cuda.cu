#include "norma/ops/scan/scan_cuda.cuh"

namespace norma {
namespace scan_cuda {
namespace {

template <class T>
struct ForwardKernelArgs {
  Sizes size;
  bool dt_softplus, log_a;
  Sequence<const T> x, dt, b, c, z;
  const stats_t<T>*a, *d, *dt_bias, *state;
  const stats_t<T>* carried;  // (B, segments, N, E), or null where there is one segment
  Sequence<T> y;
  stats_t<T>*last_state, *chunk_states;
};

/// Of a multiprocessor: what the states' registers leave room for.
template <class T, class P>
constexpr int kBlocks = sizeof(T) == 8 || P::kN > 64 ? 2
                        : P::kN > 16                 ? 3
                                                     : 4;

template <class T, class P>
struct ForwardShared {
  SharedStates<T, P> b, c;
  TurnedTile<P, stats_t<T>> delta, input, y;
  stats_t<T> d[P::kChannels], bias[P::kChannels];
};

template <class T, class P, bool kWhole>
__global__ void __launch_bounds__(kThreads, kBlocks<T, P>)
    scan_forward_kernel(ForwardKernelArgs<T> k) {
  using Acc = stats_t<T>;
  constexpr int kLanes = P::kLanes, kStates = P::kStates, kPer = P::kPer;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<ForwardShared<T, P>*>(memory);
  const Sizes& s = k.size;
  const int64_t batch = blockIdx.x / s.blocks, segment = blockIdx.y;
  const int64_t first_channel = blockIdx.x % s.blocks * P::kChannels;

  // As owner of states first … first + kStates − 1 of one channel.
  const int lane = threadIdx.x % kLanes, own = threadIdx.x / kLanes, first = lane * kStates;
  const int64_t channel = first_channel + own;
  const bool exists = kWhole || channel < s.channels;
  Acc a[kStates], h[kStates];
#pragma unroll
  for (int i = 0; i < kStates; ++i) {
    const bool real = exists && first + i < s.n;
    a[i] =
        real ? rate_of(k.a[channel * s.n + first + i], k.log_a) * Acc(1.4426950408889634) : Acc(0);
    h[i] = 0;
    if (real && k.carried)
      h[i] = k.carried[((batch * s.segments + segment) * s.n + first + i) * s.channels + channel];
    else if (real && k.state)
      h[i] = k.state[(batch * s.channels + channel) * s.n + first + i];
  }

  // As reader and writer of kPer elements of row `row` of a tile.
  const int row = threadIdx.x / 4, column = threadIdx.x % 4 * kPer;
  const int count = int(min(int64_t{kPer}, s.channels - first_channel - column));
  for (int i = threadIdx.x; i < P::kChannels; i += kThreads) {
    const bool real = first_channel + i < s.channels;
    shared.d[i] = k.d && real ? k.d[first_channel + i] : Acc(0);
    shared.bias[i] = k.dt_bias && real ? k.dt_bias[first_channel + i] : Acc(0);
  }
  __syncthreads();
  Words<T, kPer> x, dt, z;
  States<P, kWhole, T> b, c;
  const auto fetch_tile = [&](int64_t t0, bool wanted) {
    const int64_t at = first_channel + column;
    const int n = wanted && t0 + row < s.length ? count : 0;
    x = fetch<kPer, kWhole>(k.x.row(batch, t0 + row) + at, n, s.aligned);
    dt = fetch<kPer, kWhole>(k.dt.row(batch, t0 + row) + at, n, s.aligned);
    z = fetch<kPer, kWhole>(k.z.row(batch, t0 + row) + at, k.z.data ? n : 0, s.aligned);
    b.read(k.b, s, batch, t0, wanted);
    c.read(k.c, s, batch, t0, wanted);
  };

  const int64_t end = s.end(segment);
  fetch_tile(s.begin(segment), true);
  for (int64_t t0 = s.begin(segment); t0 < end; t0 += kSteps) {
    if (k.chunk_states && exists) {
      const int64_t chunks = (s.length + kSteps - 1) / kSteps;
      Acc* to = k.chunk_states + (batch * chunks + t0 / kSteps) * s.n * s.channels + channel;
#pragma unroll
      for (int i = 0; i < kStates; ++i)
        if (first + i < s.n) to[(first + i) * s.channels] = h[i];
    }
    Acc deltas[kPer], scaled[kPer];
    get_run(&shared.bias[column], scaled);
#pragma unroll
    for (int i = 0; i < kPer; ++i) deltas[i] = convert<Acc>(dt[i]) + scaled[i];
    make_steps(deltas, k.dt_softplus, t0 + row < s.length);
#pragma unroll
    for (int i = 0; i < kPer; ++i) scaled[i] = deltas[i] * convert<Acc>(x[i]);
    shared.delta.put_row(row, column, deltas);
    shared.input.put_row(row, column, scaled);
    b.put(k.b, s, batch, t0, shared.b.v);
    c.put(k.c, s, batch, t0, shared.c.v);
    const Words<T, kPer> inputs = x, gates = z;  // as they came: half the registers
    __syncthreads();
    fetch_tile(t0 + kSteps, t0 + kSteps < end);

#pragma unroll kUnroll < P>
    for (int t = 0; t < kSteps; t += P::kQuad) {
      Acc sums[P::kQuad], delta[P::kQuad], input[P::kQuad];
      shared.delta.get_quad(t, own, delta);
      shared.input.get_quad(t, own, input);
#pragma unroll
      for (int j = 0; j < P::kQuad; ++j) {
        Acc into[kStates], out[kStates];
        read_states(shared.b, k.b, s, batch, t0, t + j, 0, first, into);
        read_states(shared.c, k.c, s, batch, t0, t + j, 0, first, out);
        sums[j] = 0;
#pragma unroll
        for (int i = 0; i < kStates; ++i) {
          h[i] = exp2_fast(delta[j] * a[i]) * h[i] + input[j] * into[i];
          sums[j] += h[i] * out[i];
        }
      }
      scatter_sum<P::kQuad, kLanes, 1>(sums);
      constexpr int kSharing = kLanes / P::kQuad;  // lanes that hold the same sum
      if (lane % kSharing == 0) shared.y.at(t + lane / kSharing, own) = sums[0];
    }
    __syncthreads();
    if (t0 + row < s.length) {
      Acc sums[kPer], d[kPer];
      shared.y.get_row(row, column, sums);
      get_run(&shared.d[column], d);
#pragma unroll
      for (int i = 0; i < kPer; ++i) sums[i] += d[i] * convert<Acc>(inputs[i]);
      if (k.z.data) {
#pragma unroll
        for (int i = 0; i < kPer; ++i) {
          const Acc gate = convert<Acc>(gates[i]);
          sums[i] *= gate * sigmoid_fast(gate);
        }
      }
      write<kWhole>(k.y.row(batch, t0 + row) + first_channel + column, rounded<T>(sums), count,
                    s.aligned);
    }
  }
  if (k.last_state && exists && end == s.length) {
#pragma unroll
    for (int i = 0; i < kStates; ++i)
      if (first + i < s.n) k.last_state[(batch * s.channels + channel) * s.n + first + i] = h[i];
  }
}

template <class T, class P>
void forward(Cuda on, const ScanForwardArgs& k) {
  using Acc = stats_t<T>;
  ForwardKernelArgs<T> args{};
  args.dt_softplus = k.dt_softplus, args.log_a = k.log_a;
  args.x = Sequence<const T>::of(k.x), args.dt = Sequence<const T>::of(k.dt);
  args.b = Sequence<const T>::of(k.b), args.c = Sequence<const T>::of(k.c);
  args.z = Sequence<const T>::of(k.z), args.y = Sequence<T>::of(k.y);
  args.a = k.a.as<Acc>(), args.d = k.d.as<Acc>(), args.dt_bias = k.dt_bias.as<Acc>();
  args.state = k.state.as<Acc>();
  args.last_state = k.last_state.as<Acc>(), args.chunk_states = k.chunk_states.as<Acc>();
  constexpr int kWide = P::kPer < kWidest<T> ? P::kPer : kWidest<T>;
  args.size = {k.x.shape[0],
               k.x.shape[1],
               k.x.shape[2],
               ceil_div(k.x.shape[2], int64_t{P::kChannels}),
               int(k.a.shape[1]),
               args.x.aligned(kWide) && args.dt.aligned(kWide) && args.z.aligned(kWide) &&
                   args.y.aligned(kWide),
               args.b.aligned(4) && args.c.aligned(4)};
  Sizes& s = args.size;
  s.cut(132 * kBlocks<T, P>);
  CarryArgs<T> carry{s,  k.dt_softplus, k.log_a,      args.dt,    args.x,  args.b,
                     {}, args.a,        args.dt_bias, args.state, nullptr, nullptr};
  const DeviceScratch<Acc> carried(on, s.segments > 1 ? carry.numbers() : 1);
  if (s.segments > 1) {
    carry.carried = carried.data();
    carry.sums = carried.data() + s.batch * s.segments * s.n * s.channels;
    carry_along(on, carry);
    args.carried = carry.carried;
  }
  const auto with = [&]<bool kWhole>() {
    launch(on,
           {.grid = dim3(unsigned(s.batch * s.blocks), unsigned(s.segments)),
            .block = dim3(kThreads),
            .shared = sizeof(ForwardShared<T, P>)},
           scan_forward_kernel<T, P, kWhole>, args);
  };
  if constexpr (kHasWhole<T, P>)
    s.whole<P>() ? with.template operator()<true>() : with.template operator()<false>();
  else
    with.template operator()<false>();
}

}  // namespace
}  // namespace scan_cuda

void run(Cuda on, const ScanForwardArgs& k) {
  visit_floating(k.x.dtype, [&]<class T>() {
    scan_cuda::visit_plan<T>(k.a.shape[1], [&]<class P>() { scan_cuda::forward<T, P>(on, k); });
  });
}

}  // namespace norma
