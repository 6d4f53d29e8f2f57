#include "norma/ops/ssd/ssd_cuda.cuh"

namespace norma {
namespace ssd_cuda {
namespace {

constexpr int kThreads = 128;  // each warp 16 steps

template <class T>
struct ForwardKernelArgs {
  Sizes size;
  Steps steps;
  Sequence<const T> x, b, c;
  Sequence<T> y;
  const float* d;         // (H, P) or null
  const T* states;        // (B, chunks, H, P, N)
  int heads_each, parts;  // heads a block, blocks a group
};

template <class T, int kN>
struct ForwardShared {
  T b[kQ][kN + kPad], c[kQ][kN + kPad];
  T state[2][kP][kN + kPad], x[2][kQ][kP + kPad];
  float sum[2][kQ], delta[2][kQ];
};

/// A chunk of some heads of a group: c bᵀ once, then a head's y = e^s ⊙ c Sᵀ + (L ⊙ c bᵀ ⊙ Δ) x + d
/// x.
template <class T, int kN>
__global__ void __launch_bounds__(kThreads) ssd_forward_kernel(ForwardKernelArgs<T> k) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<ForwardShared<T, kN>*>(memory);
  const Sizes& s = k.size;
  const int part = int(blockIdx.y) % k.parts, group = int(blockIdx.y) / k.parts;
  const int64_t chunk = blockIdx.x % s.chunks, batch = blockIdx.x / s.chunks, t0 = chunk * kQ;
  const int first = group * s.shared() + part * k.heads_each;
  const int last = min(first + k.heads_each, (group + 1) * s.shared());
  const int warp = int(threadIdx.x) / kWarpSize, i0 = warp * 16;
  const int lane = lane_of(), g = lane / 4, c = lane % 4 * 2;

  const auto fetch = [&](int head) {
    const int to = (head - first) % 2;
    copy_rows<kP, kThreads>(&shared.x[to][0][0], k.x, batch, t0, s.length, int64_t{head} * kP);
    copy_matrix<kN, kThreads>(&shared.state[to][0][0],
                              k.states + ((batch * s.chunks + chunk) * s.heads + head) * kP * kN);
    commit_copies();
    if (threadIdx.x < kQ) {
      const int64_t at = (batch * s.padded() + t0 + threadIdx.x) * s.heads + head;
      shared.sum[to][threadIdx.x] = k.steps.sum[at];
      shared.delta[to][threadIdx.x] = k.steps.delta[at];
    }
  };

  copy_rows<kN, kThreads>(&shared.b[0][0], k.b, batch, t0, s.length, int64_t{group} * kN);
  copy_rows<kN, kThreads>(&shared.c[0][0], k.c, batch, t0, s.length, int64_t{group} * kN);
  commit_copies();
  fetch(first);
  wait_for_copies<1>();
  __syncthreads();
  float cb[kQ / 8][4] = {};
#pragma unroll
  for (int n = 0; n < kN; n += 16) {
    uint32_t a[4];
    load_a(a, &shared.c[0][0], kN + kPad, i0, n);
#pragma unroll
    for (int tile = 0; tile < kQ / 8; tile += 2) {
      if (tile * 8 > i0) break;  // the same for the whole warp
      uint32_t b[4];
      load_b(b, &shared.b[0][0], kN + kPad, n, tile * 8);
      multiply_add<T>(cb[tile], a, b[0], b[1]);
      multiply_add<T>(cb[tile + 1], a, b[2], b[3]);
    }
  }

  for (int head = first; head < last; ++head) {
    const int from = (head - first) % 2;
    if (head + 1 < last) {
      fetch(head + 1);
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    __syncthreads();
    const float sums[2] = {shared.sum[from][i0 + g], shared.sum[from][i0 + g + 8]};
    float y[kP / 8][4] = {};
#pragma unroll
    for (int n = 0; n < kN; n += 16) {
      uint32_t a[4];
      load_a(a, &shared.c[0][0], kN + kPad, i0, n);
#pragma unroll
      for (int tile = 0; tile < kP / 8; tile += 2) {
        uint32_t b[4];
        load_b(b, &shared.state[from][0][0], kN + kPad, n, tile * 8);
        multiply_add<T>(y[tile], a, b[0], b[1]);
        multiply_add<T>(y[tile + 1], a, b[2], b[3]);
      }
    }
    const float rise[2] = {exp_fast(sums[0]), exp_fast(sums[1])};
#pragma unroll
    for (int tile = 0; tile < kP / 8; ++tile)
#pragma unroll
      for (int e = 0; e < 4; ++e) y[tile][e] *= rise[e / 2];
#pragma unroll
    for (int j = 0; j < kQ; j += 16) {
      if (j > i0) break;
      uint32_t a[4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // of the 16 columns
        const float* sum = &shared.sum[from][j + half * 8 + c];
        const float* delta = &shared.delta[from][j + half * 8 + c];
#pragma unroll
        for (int rows = 0; rows < 2; ++rows) {
          float m[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const bool seen =
                j + half * 8 + c + e <= i0 + g + rows * 8;  // e^(s_i − s_j) may overflow
            m[e] = seen ? cb[j / 8 + half][rows * 2 + e] * exp_fast(sums[rows] - sum[e]) * delta[e]
                        : 0.0f;
          }
          a[half * 2 + rows] = pack<T>(m[0], m[1]);
        }
      }
#pragma unroll
      for (int tile = 0; tile < kP / 8; tile += 2) {
        uint32_t b[4];
        load_b_turned(b, &shared.x[from][0][0], kP + kPad, j, tile * 8);
        multiply_add<T>(y[tile], a, b[0], b[1]);
        multiply_add<T>(y[tile + 1], a, b[2], b[3]);
      }
    }
#pragma unroll
    for (int rows = 0; rows < 2; ++rows) {
      const int i = i0 + g + rows * 8;
      if (t0 + i >= s.length) continue;
      T* out = k.y.row(batch, t0 + i) + int64_t{head} * kP;
#pragma unroll
      for (int tile = 0; tile < kP / 8; ++tile) {
        const int p = tile * 8 + c;
        float low = y[tile][rows * 2], high = y[tile][rows * 2 + 1];
        if (k.d) {
          const Pair x = read_pair(&shared.x[from][i][p]);
          low += k.d[head * kP + p] * x.low, high += k.d[head * kP + p + 1] * x.high;
        }
        *reinterpret_cast<uint32_t*>(out + p) = pack<T>(low, high);
      }
    }
    __syncthreads();
  }
}

template <class T, int kN>
void forward(Cuda on, const SsdForwardArgs& k) {
  ForwardKernelArgs<T> args{};
  Sizes& s = args.size;
  s = {k.x.shape[0], k.x.shape[1], ceil_div(k.x.shape[1], int64_t{kQ}), int(k.x.shape[2]),
       int(k.b.shape[2])};
  const int64_t numbers = s.batch * s.padded() * s.heads;
  const DeviceScratch<float> steps(on, 3 * numbers + 1);
  const DeviceScratch<T> states(on, s.batch * s.chunks * s.heads * kP * kN + 1);
  args.steps = {steps.data(), steps.data() + numbers, steps.data() + 2 * numbers};
  args.x = Sequence<const T>::of(k.x), args.b = Sequence<const T>::of(k.b);
  args.c = Sequence<const T>::of(k.c), args.y = Sequence<T>::of(k.y);
  args.d = k.d.as<float>(), args.states = states.data();
  compute_steps(on, s, Sequence<const T>::of(k.dt), k.a.as<float>(), k.dt_bias.as<float>(),
                k.dt_softplus, k.dt_min, k.dt_max, args.steps);
  const StateSide<T> along{args.x, args.b, k.state.as<float>(), states.data(),
                           k.last_state.as<float>()};
  compute_states<T>(on, s, kN, args.steps, along, nullptr);
  // Enough blocks for two on every multiprocessor of the largest chips; c bᵀ is shared within one.
  const int64_t wanted = ceil_div(int64_t{320}, s.batch * s.chunks * s.groups);
  args.heads_each = int(ceil_div(int64_t{s.shared()}, wanted));
  args.parts = ceil_div(s.shared(), args.heads_each);
  launch(on,
         {.grid = dim3(unsigned(s.batch * s.chunks), unsigned(args.parts * s.groups)),
          .block = dim3(kThreads),
          .shared = sizeof(ForwardShared<T, kN>)},
         ssd_forward_kernel<T, kN>, args);
}

}  // namespace
}  // namespace ssd_cuda

void run(Cuda on, const SsdForwardArgs& k) {
  if (k.x.shape.numel() == 0) return;
  const auto with = [&]<class T>(T) {
    if (k.b.shape[3] == 128)
      ssd_cuda::forward<T, 128>(on, k);
    else
      ssd_cuda::forward<T, 64>(on, k);
  };
  if (k.x.dtype == bfloat16)
    with(BFloat16{});
  else
    with(Float16{});
}

}  // namespace norma
