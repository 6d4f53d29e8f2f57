#include "norma/ops/ssd/ssd_cuda.cuh"

namespace norma::ssd_cuda {
namespace {

constexpr int kThreads = 128;  // each warp 16 rows of P

template <class T>
struct StepsKernelArgs {
  Sizes size;
  Sequence<const T> dt;
  const float *a, *dt_bias;
  bool softplus;
  float dt_min, dt_max;
  Steps steps;
};

/// A thread a chunk and head: neighbours read neighbouring heads.
template <class T>
__global__ void ssd_steps_kernel(StepsKernelArgs<T> k) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const Sizes& s = k.size;
  if (i >= s.batch * s.chunks * s.heads) return;
  const int head = int(i % s.heads);
  const int64_t chunk = i / s.heads % s.chunks, batch = i / s.heads / s.chunks;
  const float a = k.a[head], bias = k.dt_bias ? k.dt_bias[head] : 0.0f;
  float running = 0;
  constexpr int kAhead = 16;  // loads in flight
  for (int first = 0; first < kQ; first += kAhead) {
    float raw[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t t = chunk * kQ + first + j;
      raw[j] = t < s.length ? convert<float>(k.dt.row(batch, t)[head]) + bias : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t t = chunk * kQ + first + j, at = (batch * s.padded() + t) * s.heads + head;
      float delta = raw[j], slope = 1;
      if (k.softplus) {
        delta = fmaxf(raw[j], 0.0f) + log1pf(exp_fast(-fabsf(raw[j])));
        slope = 1 / (1 + exp_fast(-raw[j]));
      }
      if (delta < k.dt_min) delta = k.dt_min, slope = 0;
      if (delta > k.dt_max) delta = k.dt_max, slope = 0;
      if (t >= s.length) delta = slope = 0;  // changes nothing
      running += delta * a;
      k.steps.delta[at] = delta, k.steps.slope[at] = slope, k.steps.sum[at] = running;
    }
  }
}

template <class T>
struct StatesKernelArgs {
  Sizes size;
  Steps steps;
  StateSide<T> sides[2];
};

template <class T, int kN>
struct StatesShared {
  T rows[2][kQ][kP + kPad], columns[2][kQ][kN + kPad];
  float factors[2][kQ], fade[2];
};

/// One head's states, chunk after chunk, the running one in registers: blockIdx.y says along time
/// or against it.
template <class T, int kN>
__global__ void __launch_bounds__(kThreads) ssd_states_kernel(StatesKernelArgs<T> k) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<StatesShared<T, kN>*>(memory);
  const Sizes& s = k.size;
  const bool back = blockIdx.y == 1;
  const StateSide<T>& side = k.sides[blockIdx.y];
  const int head = int(blockIdx.x % s.heads), group = head / s.shared();
  const int64_t batch = blockIdx.x / s.heads;
  const int lane = lane_of(), g = lane / 4, c = lane % 4 * 2;
  const int p = int(threadIdx.x) / kWarpSize * 16;

  const auto chunk_at = [&](int64_t step) { return back ? s.chunks - 1 - step : step; };
  const auto fetch = [&](int64_t step) {
    const int64_t chunk = chunk_at(step);
    const int to = int(step % 2);
    copy_rows<kP, kThreads>(&shared.rows[to][0][0], side.rows, batch, chunk * kQ, s.length,
                            int64_t{head} * kP);
    copy_rows<kN, kThreads>(&shared.columns[to][0][0], side.columns, batch, chunk * kQ, s.length,
                            int64_t{group} * kN);
    commit_copies();
    const int64_t at = (batch * s.padded() + chunk * kQ) * s.heads + head;
    const float end = k.steps.sum[at + int64_t{kQ - 1} * s.heads];
    if (threadIdx.x < kQ) {
      const int64_t mine = at + int64_t{threadIdx.x} * s.heads;
      const float sum = k.steps.sum[mine];
      shared.factors[to][threadIdx.x] =
          back ? exp_fast(sum) : exp_fast(end - sum) * k.steps.delta[mine];
    }
    if (threadIdx.x == 0) shared.fade[to] = exp_fast(end);
  };

  float state[kN / 8][4];
  const int64_t own = (batch * s.heads + head) * kP * kN;
#pragma unroll
  for (int tile = 0; tile < kN / 8; ++tile)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      state[tile][e] =
          side.first ? side.first[own + (p + g + e / 2 * 8) * kN + tile * 8 + c + e % 2] : 0.0f;

  fetch(0);
  for (int64_t step = 0; step < s.chunks; ++step) {
    T* out = side.states + ((batch * s.chunks + chunk_at(step)) * s.heads + head) * kP * kN;
#pragma unroll
    for (int tile = 0; tile < kN / 8; ++tile)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<uint32_t*>(out + (p + g + half * 8) * kN + tile * 8 + c) =
            pack<T>(state[tile][2 * half], state[tile][2 * half + 1]);
    if (step + 1 == s.chunks && !side.last) break;
    if (step + 1 < s.chunks) {
      fetch(step + 1);
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    __syncthreads();
    const int from = int(step % 2);
    const float fade = shared.fade[from];
#pragma unroll
    for (int tile = 0; tile < kN / 8; ++tile)
#pragma unroll
      for (int e = 0; e < 4; ++e) state[tile][e] *= fade;
#pragma unroll
    for (int q = 0; q < kQ; q += 16) {
      uint32_t a[4];
      load_a_turned(a, &shared.rows[from][0][0], kP + kPad, p, q);
      const float* f = &shared.factors[from][q + c];
      a[0] = scaled<T>(a[0], f[0], f[1]), a[1] = scaled<T>(a[1], f[0], f[1]);
      a[2] = scaled<T>(a[2], f[8], f[9]), a[3] = scaled<T>(a[3], f[8], f[9]);
#pragma unroll
      for (int tile = 0; tile < kN / 8; tile += 2) {
        uint32_t b[4];
        load_b_turned(b, &shared.columns[from][0][0], kN + kPad, q, tile * 8);
        multiply_add<T>(state[tile], a, b[0], b[1]);
        multiply_add<T>(state[tile + 1], a, b[2], b[3]);
      }
    }
    __syncthreads();
  }
  if (!side.last) return;
#pragma unroll
  for (int tile = 0; tile < kN / 8; ++tile)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      side.last[own + (p + g + e / 2 * 8) * kN + tile * 8 + c + e % 2] = state[tile][e];
}

}  // namespace

template <class T>
void compute_steps(Cuda on, const Sizes& size, const Sequence<const T>& dt, const float* a,
                   const float* dt_bias, bool softplus, double dt_min, double dt_max,
                   const Steps& steps) {
  const StepsKernelArgs<T> args{size,          dt,   a, dt_bias, softplus, float(dt_min),
                                float(dt_max), steps};
  launch(on, {.grid = grid_for(size.batch * size.chunks * size.heads, 64), .block = dim3(64)},
         ssd_steps_kernel<T>, args);
}

template <class T>
void compute_states(Cuda on, const Sizes& size, int n, const Steps& steps,
                    const StateSide<T>& along, const StateSide<T>* against) {
  StatesKernelArgs<T> args{size, steps, {along, against ? *against : along}};
  const dim3 grid(unsigned(size.batch * size.heads), against ? 2 : 1);
  if (n == 128)
    launch(on, {.grid = grid, .block = dim3(kThreads), .shared = sizeof(StatesShared<T, 128>)},
           ssd_states_kernel<T, 128>, args);
  else
    launch(on, {.grid = grid, .block = dim3(kThreads), .shared = sizeof(StatesShared<T, 64>)},
           ssd_states_kernel<T, 64>, args);
}

template void compute_steps(Cuda, const Sizes&, const Sequence<const BFloat16>&, const float*,
                            const float*, bool, double, double, const Steps&);
template void compute_steps(Cuda, const Sizes&, const Sequence<const Float16>&, const float*,
                            const float*, bool, double, double, const Steps&);
template void compute_states(Cuda, const Sizes&, int, const Steps&, const StateSide<BFloat16>&,
                             const StateSide<BFloat16>*);
template void compute_states(Cuda, const Sizes&, int, const Steps&, const StateSide<Float16>&,
                             const StateSide<Float16>*);

}  // namespace norma::ssd_cuda
