#include <algorithm>
#include <numbers>

#include "norma/core/cuda/async_copy.cuh"
#include "norma/core/cuda/numeric.cuh"
#include "norma/core/cuda/packed.cuh"
#include "norma/core/cuda/reduce.cuh"
#include "norma/core/cuda/scratch.h"
#include "norma/core/dispatch.h"
#include "norma/ops/norm/dyt_kernels.h"
#include "norma/ops/norm/row.cuh"

namespace norma {
namespace {

using namespace norm_cuda;

/// f(αx + s) and its slope.
template <class Acc>
struct Squashed {
  Acc t, slope;
};
template <SquashFunction kFunction>
__device__ __forceinline__ Squashed<double> squash(double v) {
  if (kFunction == SquashFunction::tanh) {
    const double t = ::tanh(v), c = ::cosh(v);
    return {t, 1 / (c * c)};
  }
  return {::erf(v), 2 * std::numbers::inv_sqrtpi * ::exp(-v * v)};
}
/// tanh within 4 units of float32. By e = exp(−2 |v|), of which 1 − e cancels near 0, where the
/// series is taken; the slope 4 e / (1 + e)² does not cancel where tanh is near 1, as 1 − t² would.
__device__ __forceinline__ Squashed<float> tanh_and_slope(float v) {
  const float a = fabsf(v), square = mul(v, v);
  const float e = exp2_fast(mul(a, -2 * std::numbers::log2e_v<float>));
  const float part = __fdividef(1.0f, add(1.0f, e));
  const float series = fused(
      fused(fused(fused(62.0f / 2835, square, -17.0f / 315), square, 2.0f / 15), square, -1.0f / 3),
      mul(square, v), v);
  const float far = copysignf(mul(sub(1.0f, e), part), v);
  return {a < 0.25f ? series : far, mul(4 * e, mul(part, part))};
}
template <SquashFunction kFunction>
__device__ __forceinline__ Squashed<float> squash(float v) {
  if (kFunction == SquashFunction::tanh) return tanh_and_slope(v);
  return {erff(v), static_cast<float>(2 * std::numbers::inv_sqrtpi) * expf(-mul(v, v))};
}

/// The same within 2^-17, enough for 16 bits, in half as many instructions. Near 0, where 1 − …
/// would cancel, the first two terms of the series.
template <SquashFunction kFunction>
__device__ __forceinline__ Squashed<float> short_squash(float v) {
  constexpr auto kTwoBySqrtPi = static_cast<float>(2 * std::numbers::inv_sqrtpi);
  const float square = mul(v, v), start = fused(mul(square, v), -1.0f / 3, v);
  if (kFunction == SquashFunction::tanh) {
    const float e = exp2_fast(mul(fabsf(v), -2 * std::numbers::log2e_v<float>));
    const float part = reciprocal_fast(add(1.0f, e));
    const float far = copysignf(mul(sub(1.0f, e), part), v);
    return {fabsf(v) < 0.06f ? start : far, mul(4 * e, mul(part, part))};
  }
  // 1 − erf(|v|) = p(1 / (1 + 0.3275911 |v|)) e^(−v²) within 1.5e-7 (Abramowitz & Stegun, 7.1.26).
  const float e = exp2_fast(mul(square, -std::numbers::log2e_v<float>));
  const float t = reciprocal_fast(fused(0.3275911f, fabsf(v), 1.0f));
  const float p = fused(
      t, fused(t, fused(t, fused(t, 1.061405429f, -1.453152027f), 1.421413741f), -0.284496736f),
      0.254829592f);
  const float far = copysignf(fused(-mul(p, t), e, 1.0f), v);
  return {fabsf(v) < 0.06f ? mul(kTwoBySqrtPi, start) : far, mul(kTwoBySqrtPi, e)};
}
/// The value alone, of tanh without |v|: 1 − 2 / (1 + e^2v).
template <SquashFunction kFunction>
__device__ __forceinline__ float short_value(float v) {
  if (kFunction != SquashFunction::tanh) return short_squash<kFunction>(v).t;
  const float start = fused(mul(mul(v, v), v), -1.0f / 3, v);
  const float e = exp2_fast(mul(v, 2 * std::numbers::log2e_v<float>));
  const float far = fused(-2.0f, reciprocal_fast(add(1.0f, e)), 1.0f);
  return fabsf(v) < 0.06f ? start : far;
}
/// For elements of T.
template <class T, SquashFunction kFunction>
__device__ __forceinline__ stats_t<T> value_for(stats_t<T> v) {
  if constexpr (sizeof(T) == 2)
    return short_value<kFunction>(v);
  else
    return squash<kFunction>(v).t;
}
template <class T, SquashFunction kFunction>
__device__ __forceinline__ Squashed<stats_t<T>> squash_for(stats_t<T> v) {
  if constexpr (sizeof(T) == 2)
    return short_squash<kFunction>(v);
  else
    return squash<kFunction>(v);
}

/// A thread keeps to one vector of columns and takes rows in turn: a block has `across` vectors of
/// a row, in as many rows as fit.
struct SquashPlan {
  int across = 1, rows = 1;  ///< threads of a block along x and y
  int64_t tiles = 1, workers = 1;
};
constexpr int kThreads = 256;

constexpr int kForwardBlocks = 4, kBackwardBlocks = 3;  // on a multiprocessor at once

template <bool kEven, class T, class Acc, int kWidth>
__device__ __forceinline__ void write_vector(T* to, int n, const Acc (&v)[kWidth]) {
  if constexpr (kEven)
    write_whole(to, v);
  else
    write_to(to, n, v);
}
template <class Acc, int kWidth>
__device__ __forceinline__ void read_or(const ConstVec& w, Acc absent, int64_t c, int n,
                                        Acc (&v)[kWidth]) {
#pragma unroll
  for (Acc& e : v) e = absent;
  if (w) read(w, c, n, v);
}

/// A thread's rows first, first + step, …, of kTensors tensors: f(i, vectors). With kRing
/// asynchronous copies bring the next kAtOnce rows' into shared memory, each thread's into places
/// of its own, so that none waits for another; else kAtOnce rows' are loaded together.
template <class T, bool kEven, bool kRing, int kTensors, int kAtOnce, class At, class F>
__device__ __forceinline__ void for_rows(int64_t first, int64_t rows, int64_t step, int n,
                                         const At& at, const F& f) {
  constexpr int kWidth = kLaneWidth<T>;
  using Vector = Packed<T, kWidth>;
  if constexpr (kRing) {
    extern __shared__ __align__(16) unsigned char memory[];
    const int threads = static_cast<int>(blockDim.x * blockDim.y);
    Vector* const mine = reinterpret_cast<Vector*>(memory) + threadIdx.y * blockDim.x + threadIdx.x;
    const auto ask = [&](int64_t i, int stage) {
      if (i < rows)
#pragma unroll
        for (int t = 0; t < kTensors; ++t)
          copy_16(mine + (stage * kTensors + t) * threads, at(t, i));
      commit_copies();  // empty at the end: they are counted
    };
#pragma unroll
    for (int stage = 0; stage < kAtOnce; ++stage) ask(first + stage * step, stage);
    int stage = 0;
#pragma unroll 1
    for (int64_t i = first; i < rows; i += step) {
      wait_for_copies<kAtOnce - 1>();
      Vector v[kTensors];
#pragma unroll
      for (int t = 0; t < kTensors; ++t) v[t] = mine[(stage * kTensors + t) * threads];
      f(i, v);
      ask(i + kAtOnce * step, stage);
      stage = stage + 1 < kAtOnce ? stage + 1 : 0;
    }
  } else {
    for (; first < rows; first += step * kAtOnce) {
      Vector v[kAtOnce][kTensors];
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        if (first + r * step >= rows) break;
#pragma unroll
        for (int t = 0; t < kTensors; ++t) {
          const T* from = at(t, first + r * step);
          if constexpr (kEven)
            v[r][t] = load<kWidth>(from);
          else
            v[r][t] = load_some<kWidth>(from, n, convert<T>(0.0f));
        }
      }
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        if (first + r * step >= rows) break;
        f(first + r * step, v[r]);
      }
    }
  }
}
/// Rows at once, and in a ring. The forward of half types asks for its rows in the background too,
/// since their arithmetic needs the registers; in blocks of as many rows, for some multiprocessors
/// are slower than others, and blocks that stayed for the whole call reached 92 % of copy where
/// these have 97.
constexpr int kForwardRows = 4, kBackwardRows = 2, kRingRows = 4;
template <class T>
inline constexpr bool kForwardInBackground = sizeof(T) == 2;

///   bytes  rows · D · (x, y)
///   bound  memory
template <class T, SquashFunction kFunction, bool kEven>
__global__ void __launch_bounds__(kThreads, kForwardBlocks)
    squash_forward_kernel(const __grid_constant__ SquashForwardArgs k, SquashPlan plan) {
  using Acc = stats_t<T>;
  constexpr int kWidth = kLaneWidth<T>;
  const int64_t c = (int64_t{blockIdx.x} * plan.across + threadIdx.x) * kWidth;
  if (c >= k.x.cols) return;
  const int n = static_cast<int>(k.x.cols - c < kWidth ? k.x.cols - c : kWidth);
  const Acc alpha = value_at<Acc>(k.alpha, 0), shift = k.shift ? value_at<Acc>(k.shift, 0) : Acc(0);
  Acc gain[kWidth], bias[kWidth];
  read_or(k.w, Acc(1), c, n, gain);
  read_or(k.b, Acc(0), c, n, bias);
  for_rows<T, kEven, kEven && kForwardInBackground<T>, 1, kForwardRows>(
      int64_t{blockIdx.y} * plan.rows + threadIdx.y, k.x.rows, plan.workers * plan.rows, n,
      [&](int, int64_t i) { return k.x.row<T>(i) + c; },
      [&](int64_t i, const Packed<T, kWidth>(&x)[1]) {
        Acc y[kWidth];
#pragma unroll
        for (int e = 0; e < kWidth; ++e)
          y[e] = fused(value_for<T, kFunction>(fused(alpha, convert<Acc>(x[0][e]), shift)), gain[e],
                       bias[e]);
        write_vector<kEven>(k.y.row<T>(i) + c, n, y);
      });
}

/// The blocks' sums: dw and db of a worker, and dα and ds of a block.
template <class Acc>
struct SquashSums {
  Acc *columns, *scalars;
  int64_t cols;
  __device__ Acc* of(int64_t worker, int which) const {
    return columns + (worker * 2 + which) * cols;
  }
};

/// In a fixed order over a block: every thread's v, in thread 0.
template <class Acc>
__device__ Acc block_total(Acc v, Acc* slots, int thread, int threads) {
  __syncthreads();
  slots[thread] = v;
  __syncthreads();
  if (thread >= kWarpSize) return 0;
  Acc sum = 0;
  for (int t = thread; t < threads; t += kWarpSize) sum = add(sum, slots[t]);
  return lanes_sum(sum, kWarpSize);
}

///   bytes  rows · D · (dy, x, dx), and two rows of sums a worker
///   bound  memory
template <class T, SquashFunction kFunction, bool kEven>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks)
    squash_backward_kernel(const __grid_constant__ SquashBackwardArgs k, SquashPlan plan,
                           SquashSums<stats_t<T>> sums) {
  using Acc = stats_t<T>;
  constexpr int kWidth = kLaneWidth<T>;
  __shared__ Acc slots[kThreads * kWidth];
  const int64_t c = (int64_t{blockIdx.x} * plan.across + threadIdx.x) * kWidth;
  const int64_t left = k.x.cols - c;
  const int n = left >= kWidth ? kWidth : left > 0 ? static_cast<int>(left) : 0;
  const Acc alpha = value_at<Acc>(k.alpha, 0), shift = k.shift ? value_at<Acc>(k.shift, 0) : Acc(0);
  Acc gain[kWidth], dw[kWidth] = {}, db[kWidth] = {}, dalpha = 0, dshift = 0;
  read_or(k.w, Acc(1), c, n, gain);
  for_rows<T, kEven, kEven, 2, kEven ? kRingRows : kBackwardRows>(
      int64_t{blockIdx.y} * plan.rows + threadIdx.y, n > 0 ? k.x.rows : 0, plan.workers * plan.rows,
      n, [&](int which, int64_t i) { return (which ? k.dy : k.x).template row<T>(i) + c; },
      [&](int64_t i, const Packed<T, kWidth>(&v)[2]) {
        Acc dx[kWidth], of_alpha = 0, of_shift = 0;
#pragma unroll
        for (int e = 0; e < kWidth; ++e) {  // of absent elements x and dy are 0
          const Acc u = convert<Acc>(v[0][e]), d = convert<Acc>(v[1][e]);
          const Squashed<Acc> s = squash_for<T, kFunction>(fused(alpha, u, shift));
          const Acc slope = mul(mul(d, gain[e]), s.slope);
          dx[e] = mul(alpha, slope);
          dw[e] = fused(d, s.t, dw[e]);
          db[e] = add(db[e], d);
          of_alpha = fused(slope, u, of_alpha);
          of_shift = add(of_shift, slope);
        }
        // A row at a time: a long sum in one float would lose digits of its terms.
        dalpha = add(dalpha, of_alpha), dshift = add(dshift, of_shift);
        if (k.dx) write_vector<kEven>(k.dx.row<T>(i) + c, n, dx);
      });
  const int thread = threadIdx.y * plan.across + threadIdx.x, threads = plan.across * plan.rows;
  const auto fold_rows = [&](const Acc(&v)[kWidth], int which) {
    __syncthreads();
#pragma unroll
    for (int e = 0; e < kWidth; ++e) slots[thread * kWidth + e] = v[e];
    __syncthreads();
    if (threadIdx.y > 0) return;
    for (int e = 0; e < n; ++e) {
      Acc sum = slots[thread * kWidth + e];
      for (int r = 1; r < plan.rows; ++r)
        sum = add(sum, slots[(thread + r * plan.across) * kWidth + e]);
      sums.of(blockIdx.y, which)[c + e] = sum;
    }
  };
  if (k.dw) fold_rows(dw, 0);
  if (k.db) fold_rows(db, 1);
  if (!k.dalpha && !k.dshift) return;
  dalpha = block_total(dalpha, slots, thread, threads);
  dshift = block_total(dshift, slots, thread, threads);
  if (thread > 0) return;
  Acc* to = sums.scalars + (blockIdx.y * plan.tiles + blockIdx.x) * 2;
  to[0] = dalpha, to[1] = dshift;
}

constexpr int kFoldCols = 32, kFoldSlices = 16, kFoldThreads = kFoldCols * kFoldSlices;

/// The workers' sums in a fixed order: slice s of a column adds the workers s, s + 16, …, and one
/// thread the slices; the last block dα and ds, a thread every 512th block's.
template <class Acc>
__global__ void __launch_bounds__(kFoldThreads)
    squash_fold_kernel(SquashSums<Acc> sums, int64_t workers, int64_t blocks, Vec dalpha,
                       Vec dshift, Vec dw, Vec db) {
  __shared__ Acc slots[kFoldSlices][kFoldCols];
#if __CUDA_ARCH__ >= 900            // older GPUs ignore the overlap
  cudaGridDependencySynchronize();  // it may have been launched before the sums were there
#endif
  const int slice = threadIdx.y;
  if (blockIdx.x == gridDim.x - 1) {
    const int thread = slice * kFoldCols + threadIdx.x;
#pragma unroll 1
    for (int which = 0; which < 2; ++which) {
      const Vec& out = which ? dshift : dalpha;
      if (!out) continue;
      Acc sum = 0;
      for (int64_t b = thread; b < blocks; b += kFoldThreads)
        sum = add(sum, sums.scalars[2 * b + which]);
      sum = block_total(sum, slots[0], thread, kFoldThreads);
      if (thread == 0) set_value(out, 0, sum);
    }
    return;
  }
  const int64_t c = int64_t{blockIdx.x} * kFoldCols + threadIdx.x;
#pragma unroll 1
  for (int which = 0; which < 2; ++which) {
    const Vec& out = which ? db : dw;
    if (!out) continue;
    Acc sum = 0;
    if (c < sums.cols)
#pragma unroll 4
      for (int64_t w = slice; w < workers; w += kFoldSlices) sum = add(sum, sums.of(w, which)[c]);
    slots[slice][threadIdx.x] = sum;
    __syncthreads();
    if (slice == 0 && c < sums.cols) {
      for (int s = 1; s < kFoldSlices; ++s) sum = add(sum, slots[s][threadIdx.x]);
      set_value(out, c, sum);
    }
    __syncthreads();
  }
}

template <class T>
SquashPlan plan_of(int64_t rows, int64_t cols, int64_t most_blocks, int turns) {
  SquashPlan plan;
  const int64_t vectors = ceil_div(cols, int64_t{kLaneWidth<T>});
  plan.tiles = ceil_div(vectors, int64_t{kThreads});
  plan.across = static_cast<int>(ceil_div(vectors, plan.tiles));
  // Whole warps, that begin where lines of memory do.
  if (plan.tiles > 1) plan.across = ceil_div(plan.across, kWarpSize) * kWarpSize;
  plan.rows = kThreads / plan.across;
  const int64_t wanted = ceil_div(rows, int64_t{plan.rows} * turns);
  plan.workers = std::min(wanted, std::max<int64_t>(1, most_blocks / plan.tiles));
  return plan;
}
template <class T, class View>
bool is_even(const View& t) {
  return !t || (reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.cols % kLaneWidth<T> == 0 &&
                t.row_stride % kLaneWidth<T> == 0);
}
LaunchShape shape_of(const SquashPlan& plan, int slots) {
  return {.grid = dim3(static_cast<unsigned>(plan.tiles), static_cast<unsigned>(plan.workers)),
          .block = dim3(static_cast<unsigned>(plan.across), static_cast<unsigned>(plan.rows)),
          .shared = static_cast<size_t>(slots * plan.across * plan.rows) * 16};
}

// As many blocks on any GPU, a turn of them on one of 132 multiprocessors: the weights' gradients
// have the same bits on all of them.
constexpr int64_t kMultiprocessors = 132;

template <class T, SquashFunction kFunction>
void forward(const Cuda& on, const SquashForwardArgs& k) {
  const SquashPlan plan = plan_of<T>(k.x.rows, k.x.cols, 32768, kForwardRows);
  if (is_even<T>(k.x) && is_even<T>(k.y))
    launch(on, shape_of(plan, kForwardInBackground<T> ? kForwardRows : 0),
           squash_forward_kernel<T, kFunction, true>, k, plan);
  else
    launch(on, shape_of(plan, 0), squash_forward_kernel<T, kFunction, false>, k, plan);
}
template <class T, SquashFunction kFunction>
void backward(const Cuda& on, const SquashBackwardArgs& k) {
  using Acc = stats_t<T>;
  const SquashPlan plan = plan_of<T>(k.x.rows, k.x.cols, kBackwardBlocks * kMultiprocessors, 8);
  const int64_t blocks = plan.tiles * plan.workers, columns = plan.workers * 2 * k.x.cols;
  const DeviceScratch<Acc> scratch(on, std::max<int64_t>(1, columns + 2 * blocks));
  const SquashSums<Acc> sums{scratch.data(), scratch.data() + columns, k.x.cols};
  if (is_even<T>(k.x) && is_even<T>(k.dy) && is_even<T>(k.dx))
    launch(on, shape_of(plan, 2 * kRingRows), squash_backward_kernel<T, kFunction, true>, k, plan,
           sums);
  else
    launch(on, shape_of(plan, 0), squash_backward_kernel<T, kFunction, false>, k, plan, sums);
  if (!k.dalpha && !k.dshift && !k.dw && !k.db) return;
  launch(on,
         {.grid = dim3(grid_for(k.x.cols, kFoldCols).x + 1),
          .block = dim3(kFoldCols, kFoldSlices),
          .overlap = true},
         squash_fold_kernel<Acc>, sums, plan.workers, blocks, k.dalpha, k.dshift, k.dw, k.db);
}

}  // namespace

void run(Cuda on, const SquashForwardArgs& k) {
  visit_floating(k.x.dtype, [&]<class T>() {
    if (k.function == SquashFunction::tanh)
      forward<T, SquashFunction::tanh>(on, k);
    else
      forward<T, SquashFunction::erf>(on, k);
  });
}
void run(Cuda on, const SquashBackwardArgs& k) {
  visit_floating(k.x.dtype, [&]<class T>() {
    if (k.function == SquashFunction::tanh)
      backward<T, SquashFunction::tanh>(on, k);
    else
      backward<T, SquashFunction::erf>(on, k);
  });
}

}  // namespace norma
