#include "norma/ops/scan/scan_cuda.cuh"

namespace norma::scan_cuda {
namespace {

template <class T, class P>
struct CarryShared {
  SharedStates<T, P> columns;
  Tile<P, stats_t<T>> delta, input;
};

/// A segment's states from zero, or their gradients in time's other direction:
///   h ← exp(Δ a) h + Δ x b,  g ← exp(Δ a) (g + dy c)
template <class T, class P, bool kBack>
__global__ void __launch_bounds__(kThreads) scan_carry_kernel(CarryArgs<T> k) {
  using Acc = stats_t<T>;
  constexpr int kLanes = P::kLanes, kStates = P::kStates, kPer = P::kPer;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<CarryShared<T, P>*>(memory);
  const Sizes& s = k.size;
  const int64_t batch = blockIdx.x / s.blocks, segment = blockIdx.y + (kBack ? 1 : 0);
  const int64_t first_channel = blockIdx.x % s.blocks * P::kChannels;
  const int lane = threadIdx.x % kLanes, own = threadIdx.x / kLanes, first = lane * kStates;
  const int64_t channel = first_channel + own;
  const bool exists = channel < s.channels;
  Acc a[kStates], h[kStates], sum = 0;
#pragma unroll
  for (int i = 0; i < kStates; ++i) {
    const bool real = exists && first + i < s.n;
    a[i] =
        real ? rate_of(k.a[channel * s.n + first + i], k.log_a) * Acc(1.4426950408889634) : Acc(0);
    h[i] = 0;
  }
  const int row = threadIdx.x / 4, column = threadIdx.x % 4 * kPer;
  const int count = int(min(int64_t{kPer}, s.channels - first_channel - column));
  Acc bias[kPer];
#pragma unroll
  for (int i = 0; i < kPer; ++i)
    bias[i] = k.dt_bias && i < count ? k.dt_bias[first_channel + column + i] : Acc(0);
  Words<T, kPer> rows, dt, z;
  States<P, false, T> columns;
  const auto fetch_tile = [&](int64_t t0) {
    const int64_t at = first_channel + column;
    const int n = t0 + row < s.length ? count : 0;
    rows = fetch<kPer, false>(k.rows.row(batch, t0 + row) + at, n, s.aligned);
    dt = fetch<kPer, false>(k.dt.row(batch, t0 + row) + at, n, s.aligned);
    if (kBack && k.z.data) z = fetch<kPer, false>(k.z.row(batch, t0 + row) + at, n, s.aligned);
    columns.read(k.columns, s, batch, t0, true);
  };

  const int64_t begin = s.begin(segment), tiles = ceil_div(s.end(segment) - begin, kSteps);
  const auto tile_at = [&](int64_t i) { return begin + (kBack ? tiles - 1 - i : i) * kSteps; };
  fetch_tile(tile_at(0));
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t t0 = tile_at(tile);
    Acc deltas[kPer], inputs[kPer];
#pragma unroll
    for (int i = 0; i < kPer; ++i) deltas[i] = convert<Acc>(dt[i]) + bias[i];
    make_steps(deltas, k.dt_softplus, t0 + row < s.length);
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      inputs[i] = convert<Acc>(rows[i]);
      if (!kBack) inputs[i] *= deltas[i];
    }
    if (kBack && k.z.data) {
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
        const Acc gate = convert<Acc>(z[i]);
        inputs[i] *= gate * sigmoid_fast(gate);
      }
    }
    put_run(&shared.delta[row][column], deltas);
    put_run(&shared.input[row][column], inputs);
    columns.put(k.columns, s, batch, t0, shared.columns.v);
    __syncthreads();
    if (tile + 1 < tiles) fetch_tile(tile_at(tile + 1));
#pragma unroll(4 * kUnroll <P>)
    for (int i = 0; i < kSteps; ++i) {
      const int t = kBack ? kSteps - 1 - i : i;
      const Acc delta = shared.delta[t][own], input = shared.input[t][own];
      Acc into[kStates];
      read_states(shared.columns, k.columns, s, batch, t0, t, 0, first, into);
      sum += delta;
#pragma unroll
      for (int j = 0; j < kStates; ++j) {
        const Acc fade = exp2_fast(delta * a[j]);
        h[j] = kBack ? fade * (h[j] + input * into[j]) : fade * h[j] + input * into[j];
      }
    }
    __syncthreads();
  }
  if (!exists) return;
  const int64_t cell = batch * s.segments + segment;
#pragma unroll
  for (int i = 0; i < kStates; ++i)
    if (first + i < s.n) k.carried[(cell * s.n + first + i) * s.channels + channel] = h[i];
  if (lane == 0) k.sums[cell * s.channels + channel] = sum;
}

/// What the segments before add: `carried` becomes the states that each begins with.
template <class T, bool kBack>
__global__ void scan_chain_kernel(CarryArgs<T> k) {
  using Acc = stats_t<T>;
  const Sizes& s = k.size;
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= s.batch * s.n * s.channels) return;
  const int64_t channel = i % s.channels, n = i / s.channels % s.n;
  const int64_t batch = i / s.channels / s.n;
  const Acc a = rate_of(k.a[channel * s.n + n], k.log_a) * Acc(1.4426950408889634);
  Acc h = k.first ? k.first[(batch * s.channels + channel) * s.n + n] : Acc(0);
  for (int64_t step = 0; step < s.segments; ++step) {
    const int64_t cell = batch * s.segments + (kBack ? s.segments - 1 - step : step);
    Acc& carried = k.carried[(cell * s.n + n) * s.channels + channel];
    const bool more = step + 1 < s.segments;  // the last has not been walked through
    const Acc added = more ? carried : Acc(0);
    const Acc fade = more ? exp2_fast(k.sums[cell * s.channels + channel] * a) : Acc(0);
    carried = h;
    h = fade * h + added;
  }
}

template <class T, bool kBack>
void carry(Cuda on, const CarryArgs<T>& k) {
  const Sizes& s = k.size;
  visit_plan<T>(s.n, [&]<class P>() {
    launch(on,
           {.grid = dim3(unsigned(s.batch * s.blocks), unsigned(s.segments - 1)),
            .block = dim3(kThreads),
            .shared = sizeof(CarryShared<T, P>)},
           scan_carry_kernel<T, P, kBack>, k);
  });
  launch(on, {.grid = grid_for(s.batch * s.n * s.channels, 128), .block = dim3(128)},
         scan_chain_kernel<T, kBack>, k);
}

}  // namespace

template <class T>
void carry_along(Cuda on, const CarryArgs<T>& args) {
  carry<T, false>(on, args);
}
template <class T>
void carry_against(Cuda on, const CarryArgs<T>& args) {
  carry<T, true>(on, args);
}

template void carry_along(Cuda, const CarryArgs<BFloat16>&);
template void carry_along(Cuda, const CarryArgs<Float16>&);
template void carry_along(Cuda, const CarryArgs<float>&);
template void carry_along(Cuda, const CarryArgs<double>&);
template void carry_against(Cuda, const CarryArgs<BFloat16>&);
template void carry_against(Cuda, const CarryArgs<Float16>&);
template void carry_against(Cuda, const CarryArgs<float>&);
template void carry_against(Cuda, const CarryArgs<double>&);

}  // namespace norma::scan_cuda
