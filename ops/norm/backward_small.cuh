#pragma once

#include "norma/core/cuda/arrivals.h"
#include "norma/core/cuda/early.h"
#include "norma/core/cuda/side_stream.h"
#include "norma/ops/norm/backward_terms.cuh"
#include "norma/ops/norm/plans.h"
#include "norma/ops/norm/weight_sums.cuh"

namespace norma::norm_cuda {

/// How norm_backward_small_kernel runs.
struct SmallPlan {
  RowOrder order;
  int64_t groups = 1, items = 0;
  int pitch = 0;      ///< of a block's sums for one gradient, in elements
  bool even = false;  ///< vectors are whole and on 16 bytes
};

inline constexpr int kSmallWarps = 8, kSmallThreads = kSmallWarps * kWarpSize;

/// What a block has of a gradient: where dw and db lie beside each other, c of them all.
template <class T>
__device__ __forceinline__ void store_small_sum(const NormBackwardArgs& k, int pitch, int size,
                                                int c, float v) {
  const bool of_w = k.dw && c < pitch;
  const int at = of_w || !k.dw ? c : c - pitch;
  if (at < size) set_value(of_w ? k.dw : k.db, at, v);
}

/// Adds the blocks' sums: four columns a thread; slice s of them adds the blocks s, s + slices, …
template <class T>
__device__ __forceinline__ void add_blocks(const NormBackwardArgs& k, const SmallPlan& plan,
                                           const float* sums, int blocks, float4* of_slices) {
  const int pitch = plan.pitch, all = (k.dw ? pitch : 0) + (k.db ? pitch : 0);
  const int fours = all / 4, slices = kSmallThreads / fours;
  const int slice = threadIdx.x / fours, four = threadIdx.x % fours;
  const auto plus = [](float4 a, float4 b) {
    return float4{add(a.x, b.x), add(a.y, b.y), add(a.z, b.z), add(a.w, b.w)};
  };
  float4 sum{0, 0, 0, 0};
  if (slice < slices) {
    const auto* from = reinterpret_cast<const float4*>(sums) + four;
#pragma unroll 16
    for (int b = slice; b < blocks; b += slices) sum = plus(sum, __ldcg(from + b * fours));
    of_slices[threadIdx.x] = sum;
  }
  __syncthreads();
  if (slice > 0) return;
  for (int other = 1; other < slices; ++other) sum = plus(sum, of_slices[other * fours + four]);
  const float v[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
  for (int e = 0; e < 4; ++e)
    store_small_sum<T>(k, pitch, static_cast<int>(plan.order.n), 4 * four + e, v[e]);
}

/// The same in a launch of its own, beside what comes next.
template <class T>
__global__ void __launch_bounds__(kSmallThreads)
    norm_backward_small_fold_kernel(const __grid_constant__ NormBackwardArgs k,
                                    const __grid_constant__ SmallPlan plan, const float* sums,
                                    int blocks) {
  __shared__ float4 of_slices[kSmallThreads];
  add_blocks<T>(k, plan, sums, blocks, of_slices);
}

/// Small problems in one launch, weights' gradients and all: for them launches are the cost, not
/// bytes. A lane has one vector of a row, a warp or part of one has a row, and all that it reads is
/// asked for at once, at places worked out while the kernel before still runs. What the lanes have
/// for the weights is added over the teams of a warp and the warps of a block; the block that comes
/// last adds the blocks', always in this order, so that the bits follow from the sizes, whatever
/// the GPU and whoever was last.
///   bound  latency: of a row, of the fence, and of the last block's sums
template <class T>
__global__ void __launch_bounds__(kSmallThreads)
    norm_backward_small_kernel(const __grid_constant__ NormBackwardArgs k,
                               const __grid_constant__ SmallPlan plan, float* sums,
                               unsigned* arrived, bool early) {
  using Acc = float;
  constexpr int kWidth = kLaneWidth<T>;
  __shared__ __align__(16) Acc by_warp[kSmallWarps][2 * kWarpSize * kWidth];
  __shared__ bool is_last;
  const NormOptions& o = k.options;
  const bool centred = o.kind == NormKind::layer;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int lanes = plan.order.lanes, size = static_cast<int>(plan.order.n);
  const int bits = 31 - __clz(lanes), lane_in = lane & (lanes - 1);
  const int teams = kSmallWarps << (5 - bits), team = (warp << (5 - bits)) + (lane >> bits);
  const int column = lane_in * kWidth;
  const int item = static_cast<int>(blockIdx.x) * teams + team;
  const int count = item < plan.items ? max(0, min(kWidth, size - column)) : 0;
  int row = item, first = column;
  if (plan.groups > 1) row = item / plan.groups, first += item % plan.groups * size;
  const auto place = [&](const auto& t) { return t.template row<T>(row) + first; };
  const T *h_at = place(k.h), *dy_at = place(k.dy), *dh_at = place(k.dh);
  if (!early) wait_for_previous_kernel();

  const auto fetch = [&](const T* from) {
    if (!plan.even) return load_some<kWidth>(from, count, convert<T>(0.0f));
    return count > 0 ? load<kWidth>(from) : Packed<T, kWidth>{};
  };
  const auto h = fetch(h_at);
  Stats<Acc> stats;  // where there is no row, zeros: they add nothing to any sum
  if (count > 0) {
    if (k.mean) stats.mean = k.mean.at<Acc>(item);
    if (k.mean_rest) stats.mean_rest = k.mean_rest.at<Acc>(item);
    stats.rstd = k.rstd.at<Acc>(item);
  }
  Acc gain[kWidth];
#pragma unroll
  for (Acc& e : gain) e = 1;
  if (k.w && count > 0) {
    read_weight<T, false>(k.w, column, count, gain);
    if (o.zero_centered)
#pragma unroll
      for (Acc& e : gain) e = add(e, Acc(1));
  }

  if (early) wait_for_previous_kernel();
  const auto dy = fetch(dy_at);
  const auto dh = k.dh ? fetch(dh_at) : Packed<T, kWidth>{};

  Acc x_hat[kWidth], g[kWidth], dw[kWidth], db[kWidth];
  LaneSum<Acc> gx, g_sum;
#pragma unroll
  for (int e = 0; e < kWidth; ++e) {
    const Acc u = convert<Acc>(h[e]), d = convert<Acc>(dy[e]);
    x_hat[e] = centred ? stats.normalized(u) : mul(u, stats.rstd);
    g[e] = mul(gain[e], d);
    gx.product(e, g[e], x_hat[e]);
    g_sum.term(e, g[e]);
    dw[e] = mul(d, x_hat[e]), db[e] = d;
  }
  const Acc inverse = o.kind == NormKind::l2 ? Acc(1) : 1 / static_cast<Acc>(size);
  const Acc along = mul(stats.rstd, mul(lanes_sum(gx.total(), lanes), inverse));
  const Acc level =
      centred ? mul(stats.rstd, mul(lanes_sum(g_sum.total(), lanes), inverse)) : Acc(0);
  Packed<T, kWidth> dx;
#pragma unroll
  for (int e = 0; e < kWidth; ++e) {
    Acc du = fused(-x_hat[e], along, fused(g[e], stats.rstd, -level));
    if (k.dh) du = add(du, convert<Acc>(dh[e]));
    dx[e] = convert<T>(du);
  }
  const auto put = [&](const Rows& t) {
    if (!t || count == 0) return;
    plan.even ? store(place(t), dx) : store_some(place(t), dx, count);
  };
  put(k.dx), put(k.dresidual);
  if (!k.dw && !k.db) return;

  // The block's sums, dw's and db's beside each other where both are wanted.
  const int pitch = plan.pitch, db_at = k.dw ? pitch : 0, all = db_at + (k.db ? pitch : 0);
#pragma unroll
  for (int e = 0; e < kWidth; ++e) {
    for (int apart = lanes; apart < kWarpSize; apart *= 2) {
      dw[e] = add(dw[e], __shfl_xor_sync(0xffffffffu, dw[e], apart));
      db[e] = add(db[e], __shfl_xor_sync(0xffffffffu, db[e], apart));
    }
    if (lane >= lanes || column >= pitch) continue;
    if (k.dw) by_warp[warp][column + e] = dw[e];
    if (k.db) by_warp[warp][db_at + column + e] = db[e];
  }
  __syncthreads();
  for (int c = threadIdx.x; c < all; c += kSmallThreads) {
    Acc total = by_warp[0][c];
#pragma unroll
    for (int w = 1; w < kSmallWarps; ++w) total = add(total, by_warp[w][c]);
    if (gridDim.x > 1)
      sums[static_cast<int>(blockIdx.x) * all + c] = total;
    else
      store_small_sum<T>(k, pitch, size, c, total);
  }
  if (gridDim.x == 1 || !arrived) return;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicAdd(arrived, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  if (threadIdx.x == 0) *arrived = 0;

  add_blocks<T>(k, plan, sums, static_cast<int>(gridDim.x), reinterpret_cast<float4*>(by_warp[0]));
}

template <class T>
bool can_be_small(const NormBackwardArgs& k) {
  const NormOptions& o = k.options;
  const int64_t size = o.group == 0 ? k.dy.cols : o.group, length = k.w    ? k.w.n
                                                                    : k.dw ? k.dw.n
                                                                    : k.db ? k.db.n
                                                                           : size;
  const auto of_t = [](const auto& t) { return !t || t.dtype == dtype_of<T>; };
  const auto weight = [](const ConstVec& w) {
    return !w || w.dtype == dtype_of<T> || w.dtype == DType::float32;
  };
  const int64_t gradients = std::max(1, (k.dw ? 1 : 0) + (k.db ? 1 : 0));
  return k.dy.rows > 0 && gradients * k.dy.rows * k.dy.cols <= most_small_elements &&
         size <= kWarpSize * kLaneWidth<T> && length == size && !k.z &&
         o.casting == Casting::wide && o.dropout == 0 && !o.precise && o.eps > 1e-37 && k.h &&
         !k.row_scale && !k.w2 && !k.dy2 && !k.dw2 && !k.db2 && !k.drow_scale && !k.mean_gx &&
         !k.g_norm && !k.du_norm && of_t(k.h) && of_t(k.dy) && of_t(k.dh) && of_t(k.dx) &&
         of_t(k.dresidual) && weight(k.w);
}

template <class T>
void backward_small(const Cuda& on, const NormBackwardArgs& k) {
  const int64_t size = k.options.group == 0 ? k.dy.cols : k.options.group;
  SmallPlan plan{.order = RowOrder(size, kLaneWidth<T>), .groups = k.dy.cols / size};
  plan.items = k.dy.rows * plan.groups;
  plan.pitch = static_cast<int>(ceil_div(size, int64_t{kLaneWidth<T>}) * kLaneWidth<T>);
  plan.even = is_even_all<T>(k, size);
  const int64_t teams = kSmallWarps * (kWarpSize / plan.order.lanes);
  const int64_t blocks = ceil_div(plan.items, teams);
  const bool sums_weights = k.dw || k.db;
  const DeviceScratch<float> sums(on, sums_weights ? blocks * 2 * plan.pitch : 1);
  // Nobody waits for a weight's gradient: it goes beside what comes next, where that may be.
  const bool many = sums_weights && blocks > 1, aside = many && detail::may_go_aside();
  unsigned* arrived = many && !aside ? detail::arrival_counter(on) : nullptr;
  launch(
      on,
      {.grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kSmallThreads), .overlap = true},
      norm_backward_small_kernel<T>, k, plan, sums.data(), arrived,
      k.settled && detail::may_read_early(on));
  if (aside)
    launch(detail::go_aside(on), {.grid = dim3(1), .block = dim3(kSmallThreads)},
           norm_backward_small_fold_kernel<T>, k, plan, sums.data(), static_cast<int>(blocks));
}

}  // namespace norma::norm_cuda
