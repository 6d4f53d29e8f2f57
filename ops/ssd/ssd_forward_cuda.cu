#include "norma/ops/ssd/ssd_cuda.cuh"

namespace norma {
namespace ssd_cuda {
namespace {

constexpr int kThreads = 128;  // each warp 16 steps
template <class T>
constexpr int kBlocks = sizeof(T) == 2 ? 3 : 1;  // a multiprocessor

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
  T wide[2][kQ][kN + kPad];  // b and c, then the states of two heads
  T x[2][kQ][kP + kPad], y[kStage<T>][kP + kPad];
  float sum[2][kQ], delta[2][kQ];
};

/// A chunk of some heads of a group: c bᵀ once, then a head's y = e^s ⊙ c Sᵀ + (L ⊙ c bᵀ ⊙ Δ) x + d
/// x. A warp keeps its 16 rows of c and c bᵀ in registers, which leaves room for three blocks.
template <class T, int kN>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) ssd_forward_kernel(ForwardKernelArgs<T> k) {
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
    copy_matrix<kN, kThreads>(&shared.wide[to][0][0],
                              k.states + ((batch * s.chunks + chunk) * s.heads + head) * kP * kN);
    const int64_t at = Steps::at(s, batch, head, t0);
    copy_steps(shared.sum[to], k.steps.sum + at);
    copy_steps(shared.delta[to], k.steps.delta + at);
    commit_copies();
  };

  copy_rows<kN, kThreads>(&shared.wide[0][0][0], k.b, batch, t0, s.length, int64_t{group} * kN);
  copy_rows<kN, kThreads>(&shared.wide[1][0][0], k.c, batch, t0, s.length, int64_t{group} * kN);
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  float cb[kQ / 8][4] = {};
  Block<T> cs[kN / 16];
#pragma unroll
  for (int n = 0; n < kN; n += 16) {
    load_a(cs[n / 16], &shared.wide[1][0][0], kN + kPad, i0, n);
#pragma unroll
    for (int tile = 0; tile < kQ / 8; tile += 2) {
      if (tile * 8 > i0) break;  // the same for the whole warp
      Block<T> b;
      load_b(b, &shared.wide[0][0][0], kN + kPad, n, tile * 8);
      multiply_add(cb[tile], cs[n / 16], b, 0);
      multiply_add(cb[tile + 1], cs[n / 16], b, 1);
    }
  }
  __syncthreads();
  fetch(first);

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
      multiply_tiles(y, cs[n / 16], &shared.wide[from][0][0], kN + kPad, n, 0);
    }
    const float rise[2] = {exp2_fast(sums[0]), exp2_fast(sums[1])};
#pragma unroll
    for (int tile = 0; tile < kP / 8; ++tile)
#pragma unroll
      for (int e = 0; e < 4; ++e) y[tile][e] *= rise[e / 2];
#pragma unroll
    for (int j = 0; j < kQ; j += 16) {
      if (j > i0) break;
      Block<T> a;
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
            m[e] = seen ? cb[j / 8 + half][rows * 2 + e] * exp2_fast(sums[rows] - sum[e]) * delta[e]
                        : 0.0f;
          }
          set_pair(a, half * 2 + rows, m[0], m[1]);
        }
      }
      multiply_tiles_turned(y, a, &shared.x[from][0][0], kP + kPad, j, 0);
    }
    if (k.d) {
#pragma unroll
      for (int tile = 0; tile < kP / 8; ++tile) {
        const int p = tile * 8 + c;
        const float d[2] = {k.d[head * kP + p], k.d[head * kP + p + 1]};
#pragma unroll
        for (int rows = 0; rows < 2; ++rows) {
          const Pair x = read_pair(&shared.x[from][i0 + g + rows * 8][p]);
          y[tile][rows * 2] += d[0] * x.low, y[tile][rows * 2 + 1] += d[1] * x.high;
        }
      }
    }
    store_tiles(&shared.y[i0 % kStage<T>][0], kP + kPad, y, [&](int row) {
      const int64_t t = t0 + i0 + row;
      return t < s.length ? k.y.row(batch, t) + int64_t{head} * kP : nullptr;
    });
    __syncthreads();
  }
}

template <class T, int kN>
void forward(Cuda on, const SsdForwardArgs& k) {
  ForwardKernelArgs<T> args{};
  Sizes& s = args.size;
  s = {k.x.shape[0], k.x.shape[1], ceil_div(k.x.shape[1], int64_t{kQ}), int(k.x.shape[2]),
       int(k.b.shape[2])};
  const DeviceScratch<float> steps(on, Steps::numbers(s));
  args.steps = Steps::in(steps.data(), s);
  compute_steps(on, s, Sequence<const T>::of(k.dt), StepRules::of(k), args.steps);
  if constexpr (sizeof(T) == 2)
    if (forward_hopper<T, kN>(on, k, s, args.steps)) return;
  const DeviceScratch<T> states(on, s.batch * s.chunks * s.heads * kP * kN + 1);
  args.x = Sequence<const T>::of(k.x), args.b = Sequence<const T>::of(k.b);
  args.c = Sequence<const T>::of(k.c), args.y = Sequence<T>::of(k.y);
  args.d = k.d ? args.steps.skip : nullptr, args.states = states.data();
  const StateSide<T> along{args.x, args.b, k.state.as<float>(), states.data(),
                           k.last_state.as<float>()};
  compute_states<T>(on, s, kN, args.steps, along, nullptr);
  args.heads_each = heads_of_a_block(s, kBlocks<T>);
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
  else if (k.x.dtype == float16)
    with(Float16{});
  else
    with(float{});
}

}  // namespace norma
