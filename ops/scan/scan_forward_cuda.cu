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

/// Channels a thread, kChannels apart. What a step's b and c take to read, four cycles of shared
/// memory each, is then taken for two of them; where blocks are few the multiprocessors need more.
constexpr int kTwo = 2, kBlocksOfTwo = 3;

template <class T, class P, int kBeside>
struct ForwardShared {
  SharedStates<T, P> b, c;
  TurnedTile<P, stats_t<T>> delta[kBeside], input[kBeside], y[kBeside];
  stats_t<T> d[kBeside][P::kChannels], bias[kBeside][P::kChannels];
};

template <class T, class P, bool kWhole, int kBeside>
__global__ void __launch_bounds__(kThreads, kBeside == kTwo ? kBlocksOfTwo : kBlocks<T, P>)
    scan_forward_kernel(ForwardKernelArgs<T> k) {
  using Acc = stats_t<T>;
  constexpr int kLanes = P::kLanes, kStates = P::kStates, kPer = P::kPer;
  constexpr int kChannels = kBeside * P::kChannels;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<ForwardShared<T, P, kBeside>*>(memory);
  const Sizes& s = k.size;
  const int64_t blocks = kBeside == 1 ? s.blocks : s.channels / kChannels;
  const int64_t batch = blockIdx.x / blocks, segment = blockIdx.y;
  const int64_t first_channel = blockIdx.x % blocks * kChannels;

  // As owner of states first … first + kStates − 1 of its channels.
  const int lane = threadIdx.x % kLanes, own = threadIdx.x / kLanes, first = lane * kStates;
  const int64_t channel = first_channel + own;
  const bool exists = kWhole || channel < s.channels;
  Acc a[kBeside][kStates], h[kBeside][kStates];
#pragma unroll
  for (int e = 0; e < kBeside; ++e) {
    const int64_t at = channel + e * P::kChannels;
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      const int n = first + i;
      const bool real = exists && n < s.n;
      a[e][i] = real ? rate_of(k.a[at * s.n + n], k.log_a) * Acc(1.4426950408889634) : Acc(0);
      h[e][i] = 0;
      if (real && k.carried)
        h[e][i] = k.carried[((batch * s.segments + segment) * s.n + n) * s.channels + at];
      else if (real && k.state)
        h[e][i] = k.state[(batch * s.channels + at) * s.n + n];
    }
  }

  // As reader and writer of kPer elements of row `row` of a tile of each.
  const int row = threadIdx.x / 4, column = threadIdx.x % 4 * kPer;
  const int count = int(min(int64_t{kPer}, s.channels - first_channel - column));
  for (int i = threadIdx.x; i < kChannels; i += kThreads) {
    const bool real = first_channel + i < s.channels;
    shared.d[0][i] = k.d && real ? k.d[first_channel + i] : Acc(0);
    shared.bias[0][i] = k.dt_bias && real ? k.dt_bias[first_channel + i] : Acc(0);
  }
  __syncthreads();
  Words<T, kPer> x[kBeside], dt[kBeside], z[kBeside];
  States<P, kWhole, T> b, c;
  const auto fetch_tile = [&](int64_t t0, bool wanted) {
    const int n = wanted && t0 + row < s.length ? count : 0;
#pragma unroll
    for (int e = 0; e < kBeside; ++e) {
      const int64_t at = first_channel + e * P::kChannels + column;
      x[e] = fetch<kPer, kWhole>(k.x.row(batch, t0 + row) + at, n, s.aligned);
      dt[e] = fetch<kPer, kWhole>(k.dt.row(batch, t0 + row) + at, n, s.aligned);
      z[e] = fetch<kPer, kWhole>(k.z.row(batch, t0 + row) + at, k.z.data ? n : 0, s.aligned);
    }
    b.read(k.b, s, batch, t0, wanted);
    c.read(k.c, s, batch, t0, wanted);
  };

  const int64_t end = s.end(segment);
  fetch_tile(s.begin(segment), true);
  for (int64_t t0 = s.begin(segment); t0 < end; t0 += kSteps) {
    Words<T, kPer> inputs[kBeside], gates[kBeside];  // as they came: half the registers
#pragma unroll
    for (int e = 0; e < kBeside; ++e) {
      if (k.chunk_states && exists) {
        const int64_t chunks = (s.length + kSteps - 1) / kSteps;
        Acc* to = k.chunk_states + (batch * chunks + t0 / kSteps) * s.n * s.channels + channel +
                  e * P::kChannels;
#pragma unroll
        for (int i = 0; i < kStates; ++i)
          if (first + i < s.n) to[(first + i) * s.channels] = h[e][i];
      }
      Acc deltas[kPer], scaled[kPer];
      get_run(&shared.bias[e][column], scaled);
#pragma unroll
      for (int i = 0; i < kPer; ++i) deltas[i] = convert<Acc>(dt[e][i]) + scaled[i];
      make_steps(deltas, k.dt_softplus, t0 + row < s.length);
#pragma unroll
      for (int i = 0; i < kPer; ++i) scaled[i] = deltas[i] * convert<Acc>(x[e][i]);
      shared.delta[e].put_row(row, column, deltas);
      shared.input[e].put_row(row, column, scaled);
      inputs[e] = x[e], gates[e] = z[e];
    }
    b.put(k.b, s, batch, t0, shared.b.v);
    c.put(k.c, s, batch, t0, shared.c.v);
    __syncthreads();
    fetch_tile(t0 + kSteps, t0 + kSteps < end);

#pragma unroll(kBeside == 1 ? kUnroll <P> : 1)
    for (int t = 0; t < kSteps; t += P::kQuad) {
      Acc sums[kBeside][P::kQuad], delta[kBeside][P::kQuad], input[kBeside][P::kQuad];
#pragma unroll
      for (int e = 0; e < kBeside; ++e) {
        shared.delta[e].get_quad(t, own, delta[e]);
        shared.input[e].get_quad(t, own, input[e]);
      }
#pragma unroll
      for (int j = 0; j < P::kQuad; ++j) {
        Acc into[kStates], out[kStates];
        read_states(shared.b, k.b, s, batch, t0, t + j, 0, first, into);
        read_states(shared.c, k.c, s, batch, t0, t + j, 0, first, out);
#pragma unroll
        for (int e = 0; e < kBeside; ++e) {
          sums[e][j] = 0;
#pragma unroll
          for (int i = 0; i < kStates; ++i) {
            h[e][i] = exp2_fast(delta[e][j] * a[e][i]) * h[e][i] + input[e][j] * into[i];
            sums[e][j] += h[e][i] * out[i];
          }
        }
      }
      constexpr int kSharing = kLanes / P::kQuad;  // lanes that hold the same sum
#pragma unroll
      for (int e = 0; e < kBeside; ++e) {
        scatter_sum<P::kQuad, kLanes, 1>(sums[e]);
        if (lane % kSharing == 0) shared.y[e].at(t + lane / kSharing, own) = sums[e][0];
      }
    }
    __syncthreads();
    if (t0 + row < s.length) {
#pragma unroll
      for (int e = 0; e < kBeside; ++e) {
        Acc sums[kPer], d[kPer];
        shared.y[e].get_row(row, column, sums);
        get_run(&shared.d[e][column], d);
#pragma unroll
        for (int i = 0; i < kPer; ++i) sums[i] += d[i] * convert<Acc>(inputs[e][i]);
        if (k.z.data) {
#pragma unroll
          for (int i = 0; i < kPer; ++i) {
            const Acc gate = convert<Acc>(gates[e][i]);
            sums[i] *= gate * sigmoid_fast(gate);
          }
        }
        write<kWhole>(k.y.row(batch, t0 + row) + first_channel + e * P::kChannels + column,
                      rounded<T>(sums), count, s.aligned);
      }
    }
  }
  if (k.last_state && exists && end == s.length) {
#pragma unroll
    for (int e = 0; e < kBeside; ++e)
#pragma unroll
      for (int i = 0; i < kStates; ++i)
        if (first + i < s.n)
          k.last_state[(batch * s.channels + channel + e * P::kChannels) * s.n + first + i] =
              h[e][i];
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
  const auto with = [&]<bool kWhole, int kBeside>(int64_t blocks) {
    launch(on,
           {.grid = dim3(unsigned(blocks), unsigned(s.segments)),
            .block = dim3(kThreads),
            .shared = sizeof(ForwardShared<T, P, kBeside>)},
           scan_forward_kernel<T, P, kWhole, kBeside>, args);
  };
  const int64_t blocks = s.batch * s.blocks;
  if constexpr (kHasWhole<T, P>) {
    if constexpr (sizeof(T) == 2) {
      if (s.whole<P>() && s.blocks % kTwo == 0 && blocks >= kTwo * 2 * 132)
        return with.template operator()<true, kTwo>(blocks / kTwo);
    }
    if (s.whole<P>()) return with.template operator()<true, 1>(blocks);
  }
  with.template operator()<false, 1>(blocks);
}

}  // namespace
}  // namespace scan_cuda

void run(Cuda on, const ScanForwardArgs& k) {
  visit_floating(k.x.dtype, [&]<class T>() {
    scan_cuda::visit_plan<T>(k.a.shape[1], [&]<class P>() { scan_cuda::forward<T, P>(on, k); });
  });
}

}  // namespace norma
