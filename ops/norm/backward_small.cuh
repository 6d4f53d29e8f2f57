#pragma once

#include "norma/core/cuda/arrivals.h"
#include "norma/core/cuda/side_stream.h"
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
inline constexpr int kSmallRows = 2, kSmallBlocks = 64;

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
/// bytes. A lane has one vector of a row; a warp, or part of one, works on two rows at a time and
/// fetches the next two meanwhile. What the lanes have for the weights is added over the teams of a
/// warp and the warps of a block; the block that comes last adds the blocks', always in this order,
/// so that the bits follow from the sizes, whatever the GPU and whoever was last.
///   bound  latency: of two rows or a few more, of the fence, and of the last block's sums
template <class T>
__global__ void __launch_bounds__(kSmallThreads)
    norm_backward_small_kernel(const __grid_constant__ NormBackwardArgs k,
                               const __grid_constant__ SmallPlan plan, float* sums,
                               unsigned* arrived) {
  using Acc = float;
  constexpr int kWidth = kLaneWidth<T>;
  __shared__ __align__(16) Acc by_warp[kSmallWarps][2 * kWarpSize * kWidth];
  __shared__ bool is_last;
  wait_for_previous_kernel();
  const NormOptions& o = k.options;
  const bool centred = o.kind == NormKind::layer;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int lanes = plan.order.lanes, size = static_cast<int>(plan.order.n);
  const int bits = 31 - __clz(lanes), lane_in = lane & (lanes - 1);
  const int teams = kSmallWarps << (5 - bits), team = (warp << (5 - bits)) + (lane >> bits);
  const int column = lane_in * kWidth;
  const int count = size - column >= kWidth ? kWidth : size > column ? size - column : 0;
  struct Row {
    Packed<T, kWidth> h, dy;
    Stats<Acc> stats;
    int64_t at;  ///< its row and, of its first element, its column
    int first;
    bool real;
  };
  const auto fetch = [&](const T* from, Packed<T, kWidth>& to) {
    if (!plan.even)
      to = load_some<kWidth>(from + column, count, convert<T>(0.0f));
    else if (count > 0)
      to = load<kWidth>(from + column);
    else
      to = {};
  };
  const auto fetch_row = [&](int64_t item, Row& r) {
    r = {};  // where there is no row, zeros: they add nothing to any sum
    r.real = item < plan.items;
    if (!r.real) return;
    r.at = item, r.first = 0;
    if (plan.groups > 1) {  // fewer than 2^31 items
      const auto i = static_cast<uint32_t>(item), groups = static_cast<uint32_t>(plan.groups);
      r.at = i / groups, r.first = static_cast<int>(i % groups) * size;
    }
    fetch(k.h.row<T>(r.at) + r.first, r.h);
    fetch(k.dy.row<T>(r.at) + r.first, r.dy);
    if (k.mean) r.stats.mean = k.mean.at<Acc>(item);
    if (k.mean_rest) r.stats.mean_rest = k.mean_rest.at<Acc>(item);
    r.stats.rstd = k.rstd.at<Acc>(item);
  };
  const int64_t first_item = int64_t{blockIdx.x} * teams + team, step = int64_t{gridDim.x} * teams;
  Row next[kSmallRows];
#pragma unroll
  for (int r = 0; r < kSmallRows; ++r) fetch_row(first_item + r * step, next[r]);

  Acc gain[kWidth], dw[kWidth] = {}, db[kWidth] = {};
#pragma unroll
  for (Acc& e : gain) e = 1;
  if (k.w && count > 0) {
    read_weight<T, false>(k.w, column, count, gain);
    if (o.zero_centered)
#pragma unroll
      for (Acc& e : gain) e = add(e, Acc(1));
  }

  struct Element {
    Acc x_hat, dy, g;
  };
  const auto element = [&](const Row& r, int e) {
    const Acc u = convert<Acc>(r.h[e]), dy = convert<Acc>(r.dy[e]);
    return Element{centred ? r.stats.normalized(u) : mul(u, r.stats.rstd), dy, mul(gain[e], dy)};
  };
  const auto finish = [&](const Row& r, Acc mean_gx, Acc mean_g) {
    const int64_t at = r.first + column;
    const Acc along = mul(r.stats.rstd, mean_gx), level = mul(r.stats.rstd, mean_g);
    Acc du[kWidth], other[kWidth];
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      const Element a = element(r, e);
      du[e] = fused(-a.x_hat, along, fused(a.g, r.stats.rstd, -level));
    }
    if (k.dh) {
      read_from(k.dh.row<T>(r.at) + at, count, other);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) du[e] = add(du[e], other[e]);
    }
    if (k.dresidual) write_to(k.dresidual.row<T>(r.at) + at, count, du);
    if (k.dx) write_to(k.dx.row<T>(r.at) + at, count, du);
  };
  const Acc inverse = o.kind == NormKind::l2 ? Acc(1) : 1 / static_cast<Acc>(size);
  for (int64_t item = first_item; item - team < plan.items; item += step * kSmallRows) {
    Row now[kSmallRows];
#pragma unroll
    for (int r = 0; r < kSmallRows; ++r) {
      now[r] = next[r];
      fetch_row(item + (kSmallRows + r) * step, next[r]);
    }
    LaneSum<Acc> gx[kSmallRows], g_sum[kSmallRows];
#pragma unroll
    for (int r = 0; r < kSmallRows; ++r)
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        const Element a = element(now[r], e);
        gx[r].product(e, a.g, a.x_hat);
        if (centred) g_sum[r].term(e, a.g);
        dw[e] = fused(a.dy, a.x_hat, dw[e]);
        db[e] = add(db[e], a.dy);
      }
    Acc mean_gx[kSmallRows], mean_g[kSmallRows];
#pragma unroll
    for (int r = 0; r < kSmallRows; ++r) mean_gx[r] = lanes_sum(gx[r].total(), lanes);
#pragma unroll
    for (int r = 0; r < kSmallRows; ++r)
      mean_g[r] = centred ? lanes_sum(g_sum[r].total(), lanes) : Acc(0);
#pragma unroll
    for (int r = 0; r < kSmallRows; ++r)
      if (now[r].real && count > 0)
        finish(now[r], mul(mean_gx[r], inverse), mul(mean_g[r], inverse));
  }
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
  plan.even = is_even<T>(k.h, size) && is_even<T>(k.dy, size);
  const int64_t teams = kSmallWarps * (kWarpSize / plan.order.lanes);
  // Not more: the last block reads what all have written.
  const int64_t blocks = std::min<int64_t>(kSmallBlocks, ceil_div(plan.items, teams * kSmallRows));
  const bool sums_weights = k.dw || k.db;
  const DeviceScratch<float> sums(on, sums_weights ? blocks * 2 * plan.pitch : 1);
  // Nobody waits for a weight's gradient: it goes beside what comes next, where that may be.
  const bool many = sums_weights && blocks > 1, aside = many && detail::may_go_aside();
  unsigned* arrived = many && !aside ? detail::arrival_counter(on) : nullptr;
  launch(
      on,
      {.grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kSmallThreads), .overlap = true},
      norm_backward_small_kernel<T>, k, plan, sums.data(), arrived);
  if (aside)
    launch(detail::go_aside(on), {.grid = dim3(1), .block = dim3(kSmallThreads)},
           norm_backward_small_fold_kernel<T>, k, plan, sums.data(), static_cast<int>(blocks));
}

}  // namespace norma::norm_cuda
