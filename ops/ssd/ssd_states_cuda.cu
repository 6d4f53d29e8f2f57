#include "norma/ops/ssd/ssd_cuda.cuh"

namespace norma::ssd_cuda {
namespace {

template <class T>
struct StepsKernelArgs {
  Sizes size;
  Sequence<const T> dt;
  StepRules rules;
  Steps steps;
};
constexpr int kStepWarps = 8;

/// A warp a chunk and head, two steps a lane. The warps of a block have neighbouring heads: they
/// share the sectors that dt lies in.
template <class T>
__global__ void __launch_bounds__(kWarpSize* kStepWarps) ssd_steps_kernel(StepsKernelArgs<T> k) {
  const Sizes& s = k.size;
  const int64_t i = int64_t{blockIdx.x} * kStepWarps + threadIdx.y;
  if (i >= s.batch * s.chunks * s.heads) return;
  const int head = int(i % s.heads), lane = int(threadIdx.x);
  const int64_t chunk = i / s.heads % s.chunks, batch = i / s.heads / s.chunks;
  const int64_t t = chunk * kQ + lane * 2;
  const StepRules& rules = k.rules;
  const float rate = rules.log_a ? -exp_of(rules.a[head]) : rules.a[head];
  if (i < s.heads) {  // the first chunk's warps
    if (lane == 0) k.steps.rate[head] = rate;
    for (int p = lane; rules.d && p < kP; p += kWarpSize)
      k.steps.skip[head * kP + p] = rules.d[rules.d_a_head ? head : head * kP + p];
  }
  const float a = rate * kLog2E, bias = rules.dt_bias ? rules.dt_bias[head] : 0.0f;
  float delta[2], slope[2], fade[2];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const bool real = t + j < s.length;
    const float raw = real ? convert<float>(k.dt.row(batch, t + j)[head]) + bias : 0.0f;
    delta[j] = raw, slope[j] = 1;
    if (rules.softplus) {
      delta[j] = fmaxf(raw, 0.0f) + log1pf(exp_fast(-fabsf(raw)));
      slope[j] = 1 / (1 + exp_fast(-raw));
    }
    if (delta[j] < rules.dt_min) delta[j] = rules.dt_min, slope[j] = 0;
    if (delta[j] > rules.dt_max) delta[j] = rules.dt_max, slope[j] = 0;
    if (!real) delta[j] = slope[j] = 0;  // changes nothing
    fade[j] = delta[j] * a;
  }
  float sum = fade[0] + fade[1];
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    const float before = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += before;
  }
  const int64_t at = Steps::at(s, batch, head, t);
  *reinterpret_cast<float2*>(k.steps.delta + at) = make_float2(delta[0], delta[1]);
  *reinterpret_cast<float2*>(k.steps.slope + at) = make_float2(slope[0], slope[1]);
  *reinterpret_cast<float2*>(k.steps.sum + at) = make_float2(sum - fade[1], sum);
}

// The walk over a head's chunks: each warp holds 16 rows and 64 columns of its state in registers.
// Half types have all columns in one block, which reads the rows once. Where heads are too few for
// the multiprocessors, time is cut into segments: a first walk from zero gives what each adds,
// ssd_carry_kernel the states at their ends, and the second walk begins there. Chunks are read
// kStages − 1 ahead.
constexpr int kOfWarp = 64, kStages = 3;  // columns, chunks in shared memory
template <int kColumns>
constexpr int kThreads = kP / 16 * (kColumns / kOfWarp) * kWarpSize;

template <class T>
struct StatesKernelArgs {
  Sizes size;
  Steps steps;
  StateSide<T> sides[2];
  int n;
  int64_t each, segments;  // chunks a segment
  float* carried;          // (sides, B, H, segments, P, N): its end, later its beginning; or null
  bool ends_only;          // the first of two walks
  __device__ float* carry(int side, int64_t sequence, int64_t segment) const {
    return carried + ((side * size.batch * size.heads + sequence) * segments + segment) * kP * n;
  }
};

template <class T, int kColumns>
struct StatesShared {
  T rows[kStages][kQ][kP + kPad], columns[kStages][kQ][kColumns + kPad];
  T out[kStage<T>][kColumns + kPad];
  float sum[kStages][kQ], delta[kStages][kQ], factors[kQ];
};

/// blockIdx: heads and columns, along time or against it, segments in the order of the walk.
template <class T, int kColumns>
__global__ void __launch_bounds__(kThreads<kColumns>, sizeof(T) == 2 ? 512 / kThreads<kColumns> : 1)
    ssd_states_kernel(StatesKernelArgs<T> k) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<StatesShared<T, kColumns>*>(memory);
  const Sizes& s = k.size;
  const bool back = blockIdx.y == 1;
  const StateSide<T>& side = k.sides[blockIdx.y];
  const int blocks = k.n / kColumns, n0 = int(blockIdx.x) % blocks * kColumns;
  const int64_t sequence = blockIdx.x / blocks, batch = sequence / s.heads;
  const int head = int(sequence % s.heads), group = head / s.shared();
  const int64_t begin = blockIdx.z * k.each, end = min(begin + k.each, s.chunks);
  const int lane = lane_of(), g = lane / 4, c = lane % 4 * 2;
  constexpr int kThreads = ssd_cuda::kThreads<kColumns>;
  const int warp = int(threadIdx.x) / kWarpSize, p = warp % 4 * 16, w0 = warp / 4 * kOfWarp;

  const auto chunk_at = [&](int64_t step) { return back ? s.chunks - 1 - step : step; };
  const auto fetch = [&](int64_t step) {
    if (step < end) {
      const int64_t t0 = chunk_at(step) * kQ, at = Steps::at(s, batch, head, t0);
      const int to = int(step % kStages);
      copy_rows<kP, kThreads>(&shared.rows[to][0][0], side.rows, batch, t0, s.length,
                              int64_t{head} * kP);
      copy_rows<kColumns, kThreads>(&shared.columns[to][0][0], side.columns, batch, t0, s.length,
                                    int64_t{group} * k.n + n0);
      copy_steps(shared.sum[to], k.steps.sum + at);
      copy_steps(shared.delta[to], k.steps.delta + at);
    }
    commit_copies();
  };
  for (int ahead = 0; ahead < kStages - 1; ++ahead) fetch(begin + ahead);

  float state[kOfWarp / 8][4];
  const int64_t own = (p + g) * int64_t{k.n} + n0 + w0 + c;
  const float* from = k.ends_only  ? nullptr
                      : k.carried  ? k.carry(back, sequence, blockIdx.z)
                      : side.first ? side.first + sequence * kP * k.n
                                   : nullptr;
#pragma unroll
  for (int tile = 0; tile < kOfWarp / 8; ++tile)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      state[tile][e] = from ? from[own + e / 2 * 8 * k.n + tile * 8 + e % 2] : 0.0f;

  const bool wants_end = k.ends_only || (side.last && end == s.chunks);
  for (int64_t step = begin; step < end; ++step) {
    if (!k.ends_only) {
      T* out = side.states + ((batch * s.chunks + chunk_at(step)) * s.heads + head) * kP * k.n;
      store_tiles(&shared.out[p % kStage<T>][w0], kColumns + kPad, state,
                  [&](int row) { return out + (p + row) * int64_t{k.n} + n0 + w0; });
    }
    if (step + 1 == end && !wants_end) break;
    wait_for_copies<kStages - 2>();
    __syncthreads();  // the stage is here, and the one before is free again
    fetch(step + kStages - 1);
    const int at = int(step % kStages);
    const float last = shared.sum[at][kQ - 1], fade = exp2_fast(last);
    if (threadIdx.x < kQ) {
      const float sum = shared.sum[at][threadIdx.x];
      shared.factors[threadIdx.x] =
          back ? exp2_fast(sum) : exp2_fast(last - sum) * shared.delta[at][threadIdx.x];
    }
    __syncthreads();
#pragma unroll
    for (int tile = 0; tile < kOfWarp / 8; ++tile)
#pragma unroll
      for (int e = 0; e < 4; ++e) state[tile][e] *= fade;
#pragma unroll
    for (int q = 0; q < kQ; q += 16) {
      Block<T> a;
      load_a_turned(a, &shared.rows[at][0][0], kP + kPad, p, q);
      scale_columns(a, &shared.factors[q + c]);
      multiply_tiles_turned(state, a, &shared.columns[at][0][0], kColumns + kPad, q, w0);
    }
  }
  if (!wants_end) return;
  float* to = k.ends_only ? k.carry(back, sequence, blockIdx.z) : side.last + sequence * kP * k.n;
#pragma unroll
  for (int tile = 0; tile < kOfWarp / 8; ++tile)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      *reinterpret_cast<float2*>(to + own + half * 8 * k.n + tile * 8) =
          make_float2(state[tile][2 * half], state[tile][2 * half + 1]);
}

/// From the segments' ends the states before them: four numbers of a state a thread.
constexpr int kCarryThreads = 256;
template <class T>
__global__ void __launch_bounds__(kCarryThreads) ssd_carry_kernel(StatesKernelArgs<T> k) {
  __shared__ float fades[Segments::kMost];
  const Sizes& s = k.size;
  const bool back = blockIdx.z == 1;
  const int64_t sequence = blockIdx.x;
  for (int64_t i = threadIdx.x; i < k.segments; i += kCarryThreads) {
    float sum = 0;
#pragma unroll 8
    for (int64_t step = i * k.each; step < min((i + 1) * k.each, s.chunks); ++step) {
      const int64_t chunk = back ? s.chunks - 1 - step : step;
      sum += k.steps.sum[sequence * s.padded() + chunk * kQ + kQ - 1];
    }
    fades[i] = exp2_fast(sum);
  }
  __syncthreads();
  const int at = (int(blockIdx.y) * kCarryThreads + int(threadIdx.x)) * 4;
  const float* first = k.sides[blockIdx.z].first;
  float4 state = make_float4(0, 0, 0, 0);
  if (first) state = *reinterpret_cast<const float4*>(first + sequence * kP * k.n + at);
  const auto cell = [&](int64_t i) {
    return reinterpret_cast<float4*>(k.carry(back, sequence, i) + at);
  };
  constexpr int kAhead = 4;  // loads on their way at once
  for (int64_t begin = 0; begin < k.segments; begin += kAhead) {
    float4 added[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      if (begin + j + 1 < k.segments) added[j] = *cell(begin + j);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t i = begin + j;
      if (i < k.segments) *cell(i) = state;
      if (i + 1 >= k.segments) break;
      state = make_float4(fades[i] * state.x + added[j].x, fades[i] * state.y + added[j].y,
                          fades[i] * state.z + added[j].z, fades[i] * state.w + added[j].w);
    }
  }
}

}  // namespace

template <class T>
void compute_steps(Cuda on, const Sizes& size, const Sequence<const T>& dt, const StepRules& rules,
                   const Steps& steps) {
  const StepsKernelArgs<T> args{size, dt, rules, steps};
  launch(on,
         {.grid = grid_for(size.batch * size.chunks * size.heads, kStepWarps),
          .block = dim3(kWarpSize, kStepWarps)},
         ssd_steps_kernel<T>, args);
}

namespace {

template <class T>
StatesKernelArgs<T> states_args(const Sizes& size, int n, const Steps& steps,
                                const StateSide<T>& along, const StateSide<T>* against,
                                const Segments& segments, float* carried) {
  return {size,           steps,  {along, against ? *against : along}, n, segments.each,
          segments.count, carried};
}
template <class T, int kColumns>
void walk(Cuda on, const StatesKernelArgs<T>& args, unsigned sides, int64_t segments) {
  const int64_t sequences = args.size.batch * args.size.heads;
  launch(on,
         {.grid = dim3(unsigned(sequences * (args.n / kColumns)), sides, unsigned(segments)),
          .block = dim3(kThreads<kColumns>),
          .shared = sizeof(StatesShared<T, kColumns>)},
         ssd_states_kernel<T, kColumns>, args);
}
template <class T>
void walk(Cuda on, const StatesKernelArgs<T>& args, unsigned sides, int64_t segments) {
  if (sizeof(T) == 2 && args.n == 128)
    walk<T, sizeof(T) == 2 ? 128 : 64>(on, args, sides, segments);
  else
    walk<T, 64>(on, args, sides, segments);
}

}  // namespace

template <class T>
void carry_states(Cuda on, const Sizes& size, int n, const Steps& steps, const StateSide<T>& along,
                  const StateSide<T>* against, const Segments& segments, float* carried) {
  const unsigned sides = against ? 2 : 1;
  auto args = states_args(size, n, steps, along, against, segments, carried);
  args.ends_only = true;
  walk(on, args, sides, segments.count - 1);
  launch(
      on,
      {.grid = dim3(unsigned(size.batch * size.heads), unsigned(kP * n / 4 / kCarryThreads), sides),
       .block = dim3(kCarryThreads)},
      ssd_carry_kernel<T>, args);
}

template <class T>
void compute_states(Cuda on, const Sizes& size, int n, const Steps& steps,
                    const StateSide<T>& along, const StateSide<T>* against) {
  if constexpr (sizeof(T) == 2) {
    if (n == 128 ? compute_states_hopper<T, 128>(on, size, steps, along, against)
                 : compute_states_hopper<T, 64>(on, size, steps, along, against))
      return;
  }
  const unsigned sides = against ? 2 : 1;
  const int64_t beside = size.batch * size.heads * (n / kOfWarp) * sides;
  // Four blocks on each of 132 multiprocessors; from two on a second reading costs more than it
  // gains.
  const Segments segments(size, beside >= 264 ? 1 : ceil_div(int64_t{528}, beside));
  const bool several = segments.count > 1;
  const DeviceScratch<float> carried(on, several ? segments.numbers(size, int(sides), n) : 1);
  if (several) carry_states<T>(on, size, n, steps, along, against, segments, carried.data());
  walk(on,
       states_args(size, n, steps, along, against, segments, several ? carried.data() : nullptr),
       sides, segments.count);
}

template void compute_steps(Cuda, const Sizes&, const Sequence<const BFloat16>&, const StepRules&,
                            const Steps&);
template void compute_steps(Cuda, const Sizes&, const Sequence<const Float16>&, const StepRules&,
                            const Steps&);
template void compute_steps(Cuda, const Sizes&, const Sequence<const float>&, const StepRules&,
                            const Steps&);
template void carry_states(Cuda, const Sizes&, int, const Steps&, const StateSide<BFloat16>&,
                           const StateSide<BFloat16>*, const Segments&, float*);
template void carry_states(Cuda, const Sizes&, int, const Steps&, const StateSide<Float16>&,
                           const StateSide<Float16>*, const Segments&, float*);
template void compute_states(Cuda, const Sizes&, int, const Steps&, const StateSide<BFloat16>&,
                             const StateSide<BFloat16>*);
template void compute_states(Cuda, const Sizes&, int, const Steps&, const StateSide<Float16>&,
                             const StateSide<Float16>*);
template void compute_states(Cuda, const Sizes&, int, const Steps&, const StateSide<float>&,
                             const StateSide<float>*);

}  // namespace norma::ssd_cuda
