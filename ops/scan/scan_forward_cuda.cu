#include "norma/ops/scan/scan_cuda.cuh"

namespace norma {
namespace scan_cuda {
namespace {

template <class T>
struct ForwardKernelArgs {
  Sizes size;
  bool dt_softplus;
  Sequence<const T> x, dt, b, c, z;
  const stats_t<T>*a, *d, *dt_bias, *state;
  Sequence<T> y;
  stats_t<T>*last_state, *chunk_states;
};

template <class T, class P>
struct ForwardShared {
  SharedStates<T, P> b, c;
  stats_t<T> delta[kSteps][P::kChannels], input[kSteps][P::kChannels], y[kSteps][P::kChannels];
};

template <class T, class P>
__global__ void __launch_bounds__(kThreads) scan_forward_kernel(ForwardKernelArgs<T> k) {
  using Acc = stats_t<T>;
  constexpr int kLanes = P::kLanes, kStates = P::kStates, kPer = P::kPer;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<ForwardShared<T, P>*>(memory);
  const Sizes& s = k.size;
  const int64_t batch = blockIdx.x / s.blocks;
  const int64_t first_channel = blockIdx.x % s.blocks * P::kChannels;

  // As owner of states first … first + kStates − 1 of one channel.
  const int lane = threadIdx.x % kLanes, own = threadIdx.x / kLanes, first = lane * kStates;
  const int64_t channel = first_channel + own;
  const bool exists = channel < s.channels;
  Acc a[kStates], h[kStates];
#pragma unroll
  for (int i = 0; i < kStates; ++i) {
    const bool real = exists && first + i < s.n;
    a[i] = real ? k.a[channel * s.n + first + i] * Acc(1.4426950408889634) : Acc(0);
    h[i] = real && k.state ? k.state[(batch * s.channels + channel) * s.n + first + i] : Acc(0);
  }

  // As reader and writer of kPer elements of row `row` of a tile.
  const int row = threadIdx.x / 4, column = threadIdx.x % 4 * kPer;
  const int count = int(min(int64_t{kPer}, s.channels - first_channel - column));
  Acc d[kPer], bias[kPer];
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    d[i] = k.d && i < count ? k.d[first_channel + column + i] : Acc(0);
    bias[i] = k.dt_bias && i < count ? k.dt_bias[first_channel + column + i] : Acc(0);
  }
  Words<T, kPer> x, dt, z;
  States<P, T> b, c;
  const auto fetch_tile = [&](int64_t t0) {
    const int64_t at = first_channel + column;
    const int n = t0 + row < s.length ? count : 0;
    x = fetch<kPer>(k.x.row(batch, t0 + row) + at, n, s.aligned);
    dt = fetch<kPer>(k.dt.row(batch, t0 + row) + at, n, s.aligned);
    if (k.z.data) z = fetch<kPer>(k.z.row(batch, t0 + row) + at, n, s.aligned);
    b.read(k.b, s, batch, t0);
    c.read(k.c, s, batch, t0);
  };

  fetch_tile(0);
  for (int64_t t0 = 0; t0 < s.length; t0 += kSteps) {
    if (k.chunk_states && exists) {
      const int64_t chunks = (s.length + kSteps - 1) / kSteps;
      Acc* to = k.chunk_states + (batch * chunks + t0 / kSteps) * s.n * s.channels + channel;
#pragma unroll
      for (int i = 0; i < kStates; ++i)
        if (first + i < s.n) to[(first + i) * s.channels] = h[i];
    }
    Acc inputs[kPer], gates[kPer];
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const Acc raw = convert<Acc>(dt[i]) + bias[i];
      // Steps beyond the end change nothing: Δ = 0.
      const Acc delta = t0 + row >= s.length ? Acc(0) : k.dt_softplus ? softplus(raw) : raw;
      inputs[i] = convert<Acc>(x[i]);
      shared.delta[row][column + i] = delta;
      shared.input[row][column + i] = delta * inputs[i];
      if (k.z.data) {
        const Acc gate = convert<Acc>(z[i]);
        gates[i] = gate * sigmoid(gate);
      }
    }
    b.put(k.b, s, batch, t0, &shared.b.v[0][0]);
    c.put(k.c, s, batch, t0, &shared.c.v[0][0]);
    __syncthreads();
    if (t0 + kSteps < s.length) fetch_tile(t0 + kSteps);

#pragma unroll 2
    for (int t = 0; t < kSteps; t += kQuad) {
      Acc sums[kQuad];
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        const Acc delta = shared.delta[t + j][own], input = shared.input[t + j][own];
        Acc into[kStates], out[kStates];
        read_states(shared.b, k.b, s, batch, t0, t + j, first, into);
        read_states(shared.c, k.c, s, batch, t0, t + j, first, out);
        sums[j] = 0;
#pragma unroll
        for (int i = 0; i < kStates; ++i) {
          h[i] = exp2_fast(delta * a[i]) * h[i] + input * into[i];
          sums[j] += h[i] * out[i];
        }
      }
      scatter_sum<kQuad, kLanes, 1>(sums);
      constexpr int kSharing = kLanes / kQuad;  // lanes that hold the same sum
      if (lane % kSharing == 0) shared.y[t + lane / kSharing][own] = sums[0];
    }
    __syncthreads();
    if (t0 + row < s.length) {
      Elements<kPer, T> y;
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
        Acc sum = shared.y[row][column + i] + d[i] * inputs[i];
        if (k.z.data) sum *= gates[i];
        y.v[i] = convert<T>(sum);
      }
      y.write(k.y.row(batch, t0 + row) + first_channel + column, count, s.aligned);
    }
  }
  if (k.last_state && exists) {
#pragma unroll
    for (int i = 0; i < kStates; ++i)
      if (first + i < s.n) k.last_state[(batch * s.channels + channel) * s.n + first + i] = h[i];
  }
}

template <class T, class P>
void forward(Cuda on, const ScanForwardArgs& k) {
  using Acc = stats_t<T>;
  ForwardKernelArgs<T> args{};
  args.dt_softplus = k.dt_softplus;
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
                   args.y.aligned(kWide)};
  launch(on,
         {.grid = dim3(unsigned(args.size.batch * args.size.blocks)),
          .block = dim3(kThreads),
          .shared = sizeof(ForwardShared<T, P>)},
         scan_forward_kernel<T, P>, args);
}

}  // namespace
}  // namespace scan_cuda

void run(Cuda on, const ScanForwardArgs& k) {
  visit_floating(k.x.dtype, [&]<class T>() {
    scan_cuda::visit_plan(k.a.shape[1], [&]<class P>() { scan_cuda::forward<T, P>(on, k); });
  });
}

}  // namespace norma
