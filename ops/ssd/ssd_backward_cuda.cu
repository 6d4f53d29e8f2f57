#include "norma/core/cuda/runtime.h"
#include "norma/ops/ssd/ssd_backward_cuda.cuh"

namespace norma {
namespace ssd_cuda {
namespace {

// In float32: half types have a kernel of their own (ssd_roles_cuda.cu), which here would have room
// for one head's rows and states, and would take half as long again. Sixteen warps: `block` says
// which 16 steps a warp's rows are, `quarter` which quarter of a product's columns.

constexpr int kThreads = 512, kWarps = kThreads / kWarpSize;

template <int kN>
struct BackwardShared {
  using T = float;
  struct Head {
    T state[kP][kN + kPad], dstate[kP][kN + kPad];
    T x[kQ][kP + kPad], dy[kQ][kP + kPad];
    float sum[kQ], delta[kQ], slope[kQ];
  };
  T b[kQ][kN + kPad], c[kQ][kN + kPad];
  T cb[kQ][kQ + kPad], m[kQ][kQ + kPad];
  float rows[4][kQ], columns[4][kQ], risen[4][kQ], fallen[4][kQ], along[4][kQ];
  float dot[kWarps], dd[8][kP];
  Head heads[2];  // or one, where shared memory ends before: then its reads are waited for
};

__device__ __forceinline__ float over_quarters(const float (&v)[4][kQ], int j) {
  return v[0][j] + v[1][j] + v[2][j] + v[3][j];
}

template <int kN>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks)
    ssd_backward_kernel(BackwardKernelArgs<float> k, int buffers) {
  using T = float;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& sh = *reinterpret_cast<BackwardShared<kN>*>(memory);
  const Sizes& s = k.size;
  const int part = int(blockIdx.y) % k.parts, group = int(blockIdx.y) / k.parts;
  const int64_t chunk = blockIdx.x % s.chunks, batch = blockIdx.x / s.chunks, t0 = chunk * kQ;
  const int first = group * s.shared() + part * k.heads_each;
  const int last = min(first + k.heads_each, (group + 1) * s.shared());
  const int warp = int(threadIdx.x) / kWarpSize, block = warp % 4, quarter = warp / 4;
  const int i0 = block * 16, n0 = quarter * (kN / 4), p0 = quarter * (kP / 4),
            j0 = quarter * (kQ / 4);
  const int lane = lane_of(), g = lane / 4, c = lane % 4 * 2;
  constexpr int kWide = kN + kPad, kNarrow = kP + kPad, kSquare = kQ + kPad;
  constexpr int kTilesN = kN / 32, kTilesP = kP / 32, kTilesQ = kQ / 32;  // of 8, in a quarter

  const auto fetch = [&](int head) {
    auto& to = sh.heads[(head - first) & (buffers - 1)];
    const int64_t at_state = ((batch * s.chunks + chunk) * s.heads + head) * kP * kN;
    copy_rows<kP, kThreads>(&to.x[0][0], k.x, batch, t0, s.length, int64_t{head} * kP);
    copy_rows<kP, kThreads>(&to.dy[0][0], k.dy, batch, t0, s.length, int64_t{head} * kP);
    copy_matrix<kN, kThreads>(&to.state[0][0], k.states + at_state);
    copy_matrix<kN, kThreads>(&to.dstate[0][0], k.dstates + at_state);
    const int64_t at = Steps::at(s, batch, head, t0);
    copy_steps(to.sum, k.steps.sum + at);
    copy_steps(to.delta, k.steps.delta + at);
    copy_steps(to.slope, k.steps.slope + at);
    commit_copies();
  };

  copy_rows<kN, kThreads>(&sh.b[0][0], k.b, batch, t0, s.length, int64_t{group} * kN);
  copy_rows<kN, kThreads>(&sh.c[0][0], k.c, batch, t0, s.length, int64_t{group} * kN);
  commit_copies();
  fetch(first);
  wait_for_copies<1>();
  __syncthreads();
  {
    float cb[kTilesQ][4] = {};
#pragma unroll
    for (int n = 0; n < kN; n += 16) {
      Block<T> a;
      load_a(a, &sh.c[0][0], kWide, i0, n);
      multiply_tiles(cb, a, &sh.b[0][0], kWide, n, j0);
    }
#pragma unroll
    for (int tile = 0; tile < kTilesQ; ++tile)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        put_pair(&sh.cb[i0 + g + r * 8][j0 + tile * 8 + c], cb[tile][2 * r], cb[tile][2 * r + 1]);
  }

  float dcb[kTilesQ][4] = {}, db[kTilesN][4] = {}, dc[kTilesN][4] = {};
  for (int head = first; head < last; ++head) {
    __syncthreads();  // the head before has read all it needs
    const auto& own = sh.heads[(head - first) & (buffers - 1)];
    if (buffers == 1 && head > first) fetch(head);
    if (buffers == 2 && head + 1 < last) {
      fetch(head + 1);
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    __syncthreads();
    const float end = own.sum[kQ - 1], fade = exp2_fast(end);
    const float sums[2] = {own.sum[i0 + g], own.sum[i0 + g + 8]};
    const float rise[2] = {exp2_fast(sums[0]), exp2_fast(sums[1])};
    const float fall[2] = {exp2_fast(end - sums[0]), exp2_fast(end - sums[1])};
    const float delta[2] = {own.delta[i0 + g], own.delta[i0 + g + 8]};

    {  // m = L ⊙ c bᵀ, and what its gradient dy (Δ x)ᵀ gives
      float r[kTilesQ][4] = {};
      if (j0 <= i0 + 15) {
#pragma unroll
        for (int p = 0; p < kP; p += 16) {
          Block<T> a;
          load_a(a, &own.dy[0][0], kNarrow, i0, p);
          multiply_tiles(r, a, &own.x[0][0], kNarrow, p, j0);
        }
      }
      float of_rows[2] = {}, of_columns[kTilesQ * 2];
#pragma unroll
      for (int tile = 0; tile < kTilesQ; ++tile) {
        const int j = j0 + tile * 8 + c;
        const float* sum = &own.sum[j];
        const float* step = &own.delta[j];
        float in_columns[2] = {};
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const Pair cb = read_pair(&sh.cb[i0 + g + row * 8][j]);
          float m[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const bool seen = j + e <= i0 + g + row * 8;  // e^(s_i − s_j) may overflow elsewhere
            const float l = seen ? exp2_fast(sums[row] - sum[e]) : 0.0f;
            m[e] = l * (e == 0 ? cb.low : cb.high);
            const float dm = r[tile][row * 2 + e] * step[e];
            dcb[tile][row * 2 + e] += l * dm;
            of_rows[row] += m[e] * dm;
            in_columns[e] += m[e] * dm;
          }
          put_pair(&sh.m[i0 + g + row * 8][j], m[0], m[1]);
        }
        of_columns[tile * 2] = in_columns[0], of_columns[tile * 2 + 1] = in_columns[1];
      }
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const float sum = over_row(of_rows[row]);
        if (c == 0) sh.rows[quarter][i0 + g + row * 8] = sum;
      }
#pragma unroll
      for (int i = 0; i < kTilesQ * 2; ++i) {
#pragma unroll
        for (int step = 4; step < kWarpSize; step *= 2)
          of_columns[i] += __shfl_xor_sync(0xffffffffu, of_columns[i], step);
        if (g == i) sh.columns[block][j0 + i / 2 * 8 + c + i % 2] = of_columns[i];
      }
    }

    {  // dc through the state before the chunk
      float through[kTilesN][4] = {};
#pragma unroll
      for (int p = 0; p < kP; p += 16) {
        Block<T> a;
        load_a(a, &own.dy[0][0], kNarrow, i0, p);
        multiply_tiles_turned(through, a, &own.state[0][0], kWide, p, n0);
      }
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        float sum = 0;
#pragma unroll
        for (int tile = 0; tile < kTilesN; ++tile) {
          const Pair out = read_pair(&sh.c[i0 + g + row * 8][n0 + tile * 8 + c]);
          const float low = through[tile][row * 2] * rise[row],
                      high = through[tile][row * 2 + 1] * rise[row];
          dc[tile][row * 2] += low, dc[tile][row * 2 + 1] += high;
          sum += low * out.low + high * out.high;
        }
        sum = over_row(sum);
        if (c == 0) sh.risen[quarter][i0 + g + row * 8] = sum;
      }
    }
    {  // db through the state after the chunk
      float through[kTilesN][4] = {};
#pragma unroll
      for (int p = 0; p < kP; p += 16) {
        Block<T> a;
        load_a(a, &own.x[0][0], kNarrow, i0, p);
        multiply_tiles_turned(through, a, &own.dstate[0][0], kWide, p, n0);
      }
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const float factor = fall[row] * delta[row];
        float sum = 0;
#pragma unroll
        for (int tile = 0; tile < kTilesN; ++tile) {
          const Pair in = read_pair(&sh.b[i0 + g + row * 8][n0 + tile * 8 + c]);
          const float low = through[tile][row * 2] * factor,
                      high = through[tile][row * 2 + 1] * factor;
          db[tile][row * 2] += low, db[tile][row * 2 + 1] += high;
          sum += low * in.low + high * in.high;
        }
        sum = over_row(sum);
        if (c == 0) sh.fallen[quarter][i0 + g + row * 8] = sum;
      }
    }
    {  // ⟨dS, S⟩, and dd
      float sum = 0;
#pragma unroll 4
      for (int i = threadIdx.x; i < kP * kN / 2; i += kThreads) {
        const int row = i / (kN / 2), column = i % (kN / 2) * 2;
        const Pair u = read_pair(&own.state[row][column]), v = read_pair(&own.dstate[row][column]);
        sum += u.low * v.low + u.high * v.high;
      }
      sum = warp_sum(sum);
      if (lane == 0) sh.dot[warp] = sum;
      const int p = int(threadIdx.x) % kP, eighth = int(threadIdx.x) / kP;
      float dd = 0;
      if (k.d) {
#pragma unroll
        for (int t = 0; t < kQ / 8; ++t)
          dd +=
              convert<float>(own.dy[eighth * 8 + t][p]) * convert<float>(own.x[eighth * 8 + t][p]);
      }
      sh.dd[eighth][p] = dd;
    }
    __syncthreads();  // m is whole

    {  // d(Δ x): rows are steps j here
      float du[kTilesP][4] = {};
#pragma unroll
      for (int n = 0; n < kN; n += 16) {
        Block<T> a;
        load_a(a, &sh.b[0][0], kWide, i0, n);
        multiply_tiles(du, a, &own.dstate[0][0], kWide, n, p0);
      }
#pragma unroll
      for (int tile = 0; tile < kTilesP; ++tile)
#pragma unroll
        for (int e = 0; e < 4; ++e) du[tile][e] *= fall[e / 2];
#pragma unroll
      for (int i = 0; i < kQ; i += 16) {
        if (i < i0) continue;
        Block<T> a;
        load_a_turned(a, &sh.m[0][0], kSquare, i0, i);
        multiply_tiles_turned(du, a, &own.dy[0][0], kNarrow, i, p0);
      }
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const int j = i0 + g + row * 8;
        T* out = k.dx.row(batch, t0 + j) + int64_t{head} * kP;
        float sum = 0;
#pragma unroll
        for (int tile = 0; tile < kTilesP; ++tile) {
          const int p = p0 + tile * 8 + c;
          const Pair x = read_pair(&own.x[j][p]);
          const float low = du[tile][row * 2], high = du[tile][row * 2 + 1];
          sum += low * x.low + high * x.high;
          float skip[2] = {0, 0};
          if (k.d) {
            const Pair dy = read_pair(&own.dy[j][p]);
            skip[0] = k.d[head * kP + p] * dy.low, skip[1] = k.d[head * kP + p + 1] * dy.high;
          }
          if (t0 + j < s.length)  // store_tiles was no faster here
            put_pair(out + p, low * delta[row] + skip[0], high * delta[row] + skip[1]);
        }
        sum = over_row(sum);
        if (c == 0) sh.along[quarter][j] = sum;
      }
    }
    __syncthreads();

    float* to = k.sums + blockIdx.x * int64_t{s.heads} * (kP + 2);
    if (warp == 0) {  // two steps a lane
      float dsum[2], falls = 0;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int j = lane * 2 + e;
        const float fallen = over_quarters(sh.fallen, j);
        falls += fallen;
        dsum[e] = over_quarters(sh.rows, j) + over_quarters(sh.risen, j) - fallen -
                  over_quarters(sh.columns, j);
      }
      falls = warp_sum(falls);
      float dot = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) dot += sh.dot[w];
      finish_steps(k, batch, t0, head, dsum, falls + fade * dot, k.a[head], [&](int e) {
        const int j = lane * 2 + e;
        return StepSums{over_quarters(sh.along, j), own.delta[j], own.slope[j]};
      });
    } else if (warp >= 2 && warp < 4) {
      const int p = int(threadIdx.x) - 2 * kWarpSize;
      float dd = 0;
#pragma unroll
      for (int eighth = 0; eighth < 8; ++eighth) dd += sh.dd[eighth][p];
      to[head * kP + p] = dd;
    }
  }

  __syncthreads();
#pragma unroll
  for (int tile = 0; tile < kTilesQ; ++tile)
#pragma unroll
    for (int row = 0; row < 2; ++row)
      put_pair(&sh.m[i0 + g + row * 8][j0 + tile * 8 + c], dcb[tile][row * 2],
               dcb[tile][row * 2 + 1]);
  __syncthreads();
#pragma unroll
  for (int q = 0; q < kQ; q += 16) {
    if (q <= i0) {  // dc += dcb b
      Block<T> a;
      load_a(a, &sh.m[0][0], kSquare, i0, q);
      multiply_tiles_turned(dc, a, &sh.b[0][0], kWide, q, n0);
    }
    if (q >= i0) {  // db += dcbᵀ c
      Block<T> a;
      load_a_turned(a, &sh.m[0][0], kSquare, i0, q);
      multiply_tiles_turned(db, a, &sh.c[0][0], kWide, q, n0);
    }
  }
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const int64_t t = t0 + i0 + g + row * 8;
    if (t >= s.length) continue;
    const int64_t at = (((part * s.batch + batch) * s.length + t) * s.groups + group) * kN;
    float* to_db = k.parts == 1 ? k.db.row(batch, t) + group * kN : k.db_parts + at;
    float* to_dc = k.parts == 1 ? k.dc.row(batch, t) + group * kN : k.dc_parts + at;
#pragma unroll
    for (int tile = 0; tile < kTilesN; ++tile) {
      const int n = n0 + tile * 8 + c;
      put_pair(to_db + n, db[tile][row * 2], db[tile][row * 2 + 1]);
      put_pair(to_dc + n, dc[tile][row * 2], dc[tile][row * 2 + 1]);
    }
  }
}

/// db and dc from the blocks' parts, (parts, rows, columns): four columns a thread.
template <class T>
__global__ void ssd_over_parts_kernel(const float4* __restrict__ db_parts,
                                      const float4* __restrict__ dc_parts, int parts, int64_t rows,
                                      int64_t length, int quads, Sequence<T> db, Sequence<T> dc) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, n = rows * quads;
  if (i >= n) return;
  const auto add_up = [&](const float4* from) {
    float4 sum = from[i];
    for (int part = 1; part < parts; ++part) {
      const float4 more = from[part * n + i];
      sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
    }
    return sum;
  };
  const auto put = [&](const Sequence<T>& to, const float4& sum) {
    T* at = to.row(i / quads / length, i / quads % length) + i % quads * 4;
    put_pair(at, sum.x, sum.y), put_pair(at + 2, sum.z, sum.w);
  };
  put(db, add_up(db_parts));
  put(dc, add_up(dc_parts));
}

/// Columns of (rows, columns) added by index, a head of dd a block: eight runs of rows, then the
/// runs, then the columns where d has a number a head. With `rate`, the a of which log(−a) came, da
/// is the gradient of that.
constexpr int kRuns = 8;
__global__ void __launch_bounds__(kP* kRuns)
    ssd_over_chunks_kernel(const float* __restrict__ parts, int64_t rows, int heads, bool d_a_head,
                           const float* rate, float* dd, float* da, float* ddt_bias) {
  __shared__ float sums[kRuns][kP];
  const int columns = heads * (kP + 2), column = int(blockIdx.x) * kP + int(threadIdx.x);
  const int64_t each = (rows + kRuns - 1) / kRuns, begin = threadIdx.y * each;
  float sum = 0;
  if (column < columns) {
#pragma unroll 8
    for (int64_t row = begin; row < min(begin + each, rows); ++row)
      sum += parts[row * columns + column];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0) return;
  const auto total = [&](int x) {
    float all = sums[0][x];
    for (int run = 1; run < kRuns; ++run) all += sums[run][x];
    return all;
  };
  sum = total(int(threadIdx.x));
  if (column < heads * kP) {
    if (dd && !d_a_head) dd[column] = sum;
    if (!dd || !d_a_head || threadIdx.x >= kWarpSize) return;
    sum = warp_sum(sum + total(int(threadIdx.x) + kWarpSize));
    if (threadIdx.x == 0) dd[blockIdx.x] = sum;
  } else if (column < heads * (kP + 1)) {
    const int head = column - heads * kP;
    da[head] = rate ? sum * rate[head] : sum;
  } else if (column >= columns) {
    return;
  } else if (ddt_bias) {
    ddt_bias[column - heads * (kP + 1)] = sum;
  }
}

template <int kN>
void backward_chunks(Cuda on, const BackwardKernelArgs<float>& k) {
  constexpr int64_t kTwo = sizeof(BackwardShared<kN>);
  constexpr int64_t kOne = kTwo - sizeof(typename BackwardShared<kN>::Head);
  const bool two = kTwo <= detail::cuda_shared_memory(on.device);
  launch(on,
         {.grid = dim3(unsigned(k.size.batch * k.size.chunks), unsigned(k.parts * k.size.groups)),
          .block = dim3(kThreads),
          .shared = size_t(two ? kTwo : kOne)},
         ssd_backward_kernel<kN>, k, two ? 2 : 1);
}

template <class T, int kN>
void backward(Cuda on, const SsdBackwardArgs& k) {
  BackwardKernelArgs<T> args{};
  Sizes& s = args.size;
  s = {k.x.shape[0], k.x.shape[1], ceil_div(k.x.shape[1], int64_t{kQ}), int(k.x.shape[2]),
       int(k.b.shape[2])};
  const int64_t of_states = s.batch * s.chunks * s.heads * kP * kN;
  const DeviceScratch<float> steps(on, Steps::numbers(s));
  const DeviceScratch<T> states(on, 2 * of_states);
  args.steps = Steps::in(steps.data(), s);
  args.dy = Sequence<const T>::of(k.dy), args.x = Sequence<const T>::of(k.x);
  args.b = Sequence<const T>::of(k.b), args.c = Sequence<const T>::of(k.c);
  args.dx = Sequence<T>::of(k.dx), args.ddt = Sequence<T>::of(k.ddt);
  args.db = Sequence<T>::of(k.db), args.dc = Sequence<T>::of(k.dc);
  args.a = args.steps.rate, args.d = k.d ? args.steps.skip : nullptr;
  args.states = states.data(), args.dstates = states.data() + of_states;
  compute_steps(on, s, Sequence<const T>::of(k.dt), StepRules::of(k), args.steps);
  const StateSide<T> along{args.x, args.b, k.state.as<float>(), states.data(), nullptr};
  const StateSide<T> against{args.dy, args.c, k.dlast_state.as<float>(), states.data() + of_states,
                             k.dstate.as<float>()};
  compute_states<T>(on, s, kN, args.steps, along, &against);

  args.heads_each = heads_of_a_block(s, kBackwardBlocks);
  args.parts = ceil_div(s.shared(), args.heads_each);
  const int64_t of_rows = s.batch * s.length * s.groups * kN, chunks = s.batch * s.chunks;
  const DeviceScratch<float> over_heads(on, args.parts > 1 ? 2 * args.parts * of_rows : 1);
  const DeviceScratch<float> over_chunks(on, chunks * s.heads * (kP + 2));
  if (args.parts > 1)
    args.db_parts = over_heads.data(), args.dc_parts = over_heads.data() + args.parts * of_rows;
  args.sums = over_chunks.data();
  if constexpr (sizeof(T) == 4)
    backward_chunks<kN>(on, args);
  else if (!backward_chunks_hopper<T, kN>(on, args))
    backward_chunks<T, kN>(on, args);
  if (args.parts > 1)
    launch(on, {.grid = grid_for(of_rows / 4, 256), .block = dim3(256)}, ssd_over_parts_kernel<T>,
           reinterpret_cast<const float4*>(args.db_parts),
           reinterpret_cast<const float4*>(args.dc_parts), args.parts, s.batch * s.length, s.length,
           s.groups * kN / 4, args.db, args.dc);
  launch(on, {.grid = dim3(unsigned(ceil_div(s.heads * (kP + 2), kP))), .block = dim3(kP, kRuns)},
         ssd_over_chunks_kernel, static_cast<const float*>(args.sums), chunks, s.heads,
         k.d.n == k.a.n, k.log_a ? args.a : nullptr, k.dd.as<float>(), k.da.as<float>(),
         k.ddt_bias.as<float>());
}

__global__ void ssd_zero_kernel(float* to, int64_t n) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) to[i] = 0;
}

}  // namespace
}  // namespace ssd_cuda

void run(Cuda on, const SsdBackwardArgs& k) {
  if (k.x.shape.numel() == 0) {  // no sequence: the sums are empty
    for (const Vec& sum : {k.da, k.dd, k.ddt_bias})
      if (sum)
        launch(on, {.grid = grid_for(sum.n, 256), .block = dim3(256)}, ssd_cuda::ssd_zero_kernel,
               sum.as<float>(), sum.n);
    return;
  }
  const auto with = [&]<class T>(T) {
    if (k.b.shape[3] == 128)
      ssd_cuda::backward<T, 128>(on, k);
    else
      ssd_cuda::backward<T, 64>(on, k);
  };
  if (k.x.dtype == bfloat16)
    with(BFloat16{});
  else if (k.x.dtype == float16)
    with(Float16{});
  else
    with(float{});
}

}  // namespace norma
