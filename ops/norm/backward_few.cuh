#pragma once

#include "norma/ops/norm/backward_terms.cuh"
#include "norma/ops/norm/cluster.cuh"
#include "norma/ops/norm/plans.h"
#include "norma/ops/norm/weight_sums.cuh"

namespace norma::norm_cuda {

inline constexpr int kFewWarps = 16, kMostFewBlocks = 16, kMostFewAtOnce = 128;

/// How norm_backward_few_kernel runs: a warp has a chunk of a row; a block, some chunks of all
/// rows of its cluster.
struct FewPlan {
  RowOrder order;
  int size = 0, all_rows = 0;
  int rows = 0, clusters = 1;         ///< rows of each cluster, the last one's or fewer
  int cluster = 1, block_chunks = 1;  ///< blocks; chunks of each, a power of two
  float beta = 1;                     ///< of the gate
};

/// Where a block's warps leave what each has for one of the weights' gradients.
using FewTerms = float[kFewWarps][kChunk];

__device__ __forceinline__ int few_place(int v, int width) {
  return (v * kWarpSize + static_cast<int>(threadIdx.x) % kWarpSize) * width;
}
/// Of many clusters: the terms of a block's rows, added in its first row's warps, which leave them
/// to norm_fold_kernel. `first`: by_warp has no readers yet; left: columns from `to` on.
template <int kVecs, int kWidth>
__device__ __forceinline__ void leave_few_sums(FewTerms& by_warp, const FewPlan& plan,
                                               float (&terms)[kVecs][kWidth], bool first, float* to,
                                               int left) {
  const int warp = threadIdx.x / kWarpSize;
  if (plan.rows > 1) {
    if (!first) __syncthreads();
    const bool of_first_row = warp < plan.block_chunks;
#pragma unroll
    for (int v = 0; v < kVecs; ++v)
      if (!of_first_row) write_whole(&by_warp[warp][few_place(v, kWidth)], terms[v]);
    __syncthreads();
    if (!of_first_row) return;
    for (int r = 1; r < plan.rows; ++r)
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
        float other[kWidth];
        read_whole(&by_warp[warp + r * plan.block_chunks][few_place(v, kWidth)], other);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) terms[v][e] = add(terms[v][e], other[e]);
      }
  }
#pragma unroll
  for (int v = 0; v < kVecs; ++v)
    if (v * kWarpSize * kWidth < left) write_whole(to + v * kWarpSize * kWidth, terms[v]);
}
/// Of one cluster: the gradient itself, of this block's columns.
template <int kVecs, int kWidth>
__device__ __forceinline__ void write_few_weights(FewTerms& by_warp, const FewPlan& plan,
                                                  const float (&terms)[kVecs][kWidth], bool first,
                                                  const Vec& out, int rank) {
  const int warp = threadIdx.x / kWarpSize, of_block = plan.block_chunks * kChunk;
  if (!first) __syncthreads();
#pragma unroll
  for (int v = 0; v < kVecs; ++v) write_whole(&by_warp[warp][few_place(v, kWidth)], terms[v]);
  __syncthreads();
  const int end = min(of_block, plan.size - rank * of_block);
  for (int c = static_cast<int>(threadIdx.x); c < end; c += static_cast<int>(blockDim.x)) {
    float sum = by_warp[c / kChunk][c % kChunk];
    for (int r = 1; r < plan.rows; ++r)
      sum = add(sum, by_warp[r * plan.block_chunks + c / kChunk][c % kChunk]);
    set_value(out, rank * of_block + c, sum);
  }
}

/// So few rows that every warp has one chunk: for them launches are the cost, not bytes. The blocks
/// of a cluster tell each other their chunks' sums, and meanwhile add their columns' terms for the
/// weights: of all rows, in one launch; or there are many clusters, whose sums are left to
/// norm_fold_kernel.
///   bytes  as the ring's kernel
///   bound  latency: of a row, and of a cluster's barrier
template <class T, GateOrder kGate, bool kFull, bool kMany>
__global__ void __launch_bounds__(kFewWarps* kWarpSize, 1)
    norm_backward_few_kernel(const __grid_constant__ NormBackwardArgs k,
                             const __grid_constant__ FewPlan plan,
                             const __grid_constant__ WeightSums<float> sums) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // older ones are spared the compilation
  constexpr int kWidth = kLaneWidth<T>, kVecs = kChunk / (kWarpSize * kWidth);
  using Terms = BackwardTerms<T, kGate, kFull>;
  __shared__ __align__(16) FewTerms by_warp;
  __shared__ float2 slots[kFewWarps * kMostFewBlocks];  // of each row, and chunk
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const bool clustered = plan.cluster > 1;
  const int rank = clustered ? static_cast<int>(cluster_rank()) : 0;
  const int chunks = plan.order.chunks, chunk = rank * plan.block_chunks + warp % plan.block_chunks;
  const int column = chunk * kChunk + lane * kWidth, row_here = warp / plan.block_chunks;
  const int of_cluster = kMany ? static_cast<int>(cluster_number()) : 0;
  const int row = of_cluster * plan.rows + row_here;
  const int end = !kMany || row < plan.all_rows ? plan.size : 0;
  const auto column_of = [&](int v) { return column + v * kWarpSize * kWidth; };
  const auto exists = [&](int v) { return column_of(v) < end; };
  wait_for_previous_kernel();
  if (clustered) cluster_arrive();  // that the others have begun: before they are written to

  // All that is read is asked for at once.
  uint4 h[kVecs], dy[kVecs], z[Terms::kGated ? kVecs : 1];
  float gain[kVecs][kWidth];
#pragma unroll
  for (int v = 0; v < kVecs; ++v) {
    if (!exists(v)) continue;
    h[v] = *reinterpret_cast<const uint4*>(k.h.row<T>(row) + column_of(v));
    dy[v] = *reinterpret_cast<const uint4*>(k.dy.row<T>(row) + column_of(v));
    if constexpr (Terms::kGated)
      z[v] = *reinterpret_cast<const uint4*>(k.z.row<T>(row) + column_of(v));
  }
  Stats<float> s;
  if (!kMany || end > 0) {
    if (kFull && k.mean) s.mean = k.mean.at<float>(row);
    if (kFull && k.mean_rest) s.mean_rest = k.mean_rest.at<float>(row);
    s.rstd = k.rstd.at<float>(row);
  }
#pragma unroll
  for (int v = 0; v < kVecs; ++v) {
#pragma unroll
    for (float& e : gain[v]) e = 1;
    if (!k.w || !exists(v)) continue;
    read_weight<T, true>(k.w, column_of(v), kWidth, gain[v]);
    if (k.options.zero_centered)
#pragma unroll
      for (float& e : gain[v]) e = add(e, 1.0f);
  }
  const auto terms_of = [&](int v, Terms& r) {
    unpack<T>(h[v], r.h);
    unpack<T>(dy[v], r.dy);
    if constexpr (Terms::kGated) {
      float gates[kWidth];
      unpack<T>(z[v], gates);
      short_gates_of<sizeof(T) == 2>(k.options.activation, plan.beta, gates, r.gate);
    }
    r.form(gain[v], s);
  };

  float dw[kVecs][kWidth] = {}, db[kFull ? kVecs : 1][kWidth] = {};
  LaneSum<float> gx, g;
#pragma unroll
  for (int v = 0; v < kVecs; ++v) {
    if (!exists(v)) continue;
    Terms r;
    terms_of(v, r);
    r.add_to(gx, g, dw[v], db[kFull ? v : 0]);
  }
  const float2 mine{lanes_sum(gx.total(), kWarpSize),
                    kFull ? lanes_sum(g.total(), kWarpSize) : 0.0f};
  float2* const row_slots = slots + row_here * chunks;
  if (clustered) {
    cluster_wait();
    if (lane < plan.cluster && chunk < chunks) {
      const uint32_t there =
          address_in(shared_address(row_slots + chunk), static_cast<uint32_t>(lane));
      store_in_cluster(there, mine.x);
      store_in_cluster(there + 4, mine.y);
    }
    __syncwarp();
    cluster_arrive();
  } else if (lane == 0 && chunk < chunks) {
    row_slots[chunk] = mine;
  }

  // The terms for the weights, while the others' sums of rows are on their way.
  const auto leave = [&](int which, auto& terms, const Vec& out) {
    if constexpr (kMany) {
      if (sums.place[which] >= 0)
        leave_few_sums(by_warp, plan, terms, which == 0, sums.of(of_cluster, which) + column,
                       end - column);
    } else if (out) {
      write_few_weights(by_warp, plan, terms, which == 0, out, rank);
    }
  };
  leave(0, dw, k.dw);
  if constexpr (kFull) leave(1, db, k.db);
  if (clustered)
    cluster_wait();
  else
    __syncthreads();

  const float inverse = k.options.kind == NormKind::l2 ? 1.0f : 1 / static_cast<float>(plan.size);
  const auto* const numbers = reinterpret_cast<const float*>(row_slots);
  float2 mean{mul(chunks_sum<2>(numbers, chunks), inverse), 0};
  if (kFull && k.options.kind == NormKind::layer)
    mean.y = mul(chunks_sum<2>(numbers + 1, chunks), inverse);
#pragma unroll
  for (int v = 0; v < kVecs; ++v) {
    if (!exists(v)) continue;
    const int c = column_of(v);
    Terms r;
    terms_of(v, r);
    float du[kWidth], other[kWidth];
    r.finish(s, mean, du, other);
    if constexpr (Terms::kGateLast)
      r.finish_gate(
          gain[v], bool(k.b), [&](float(&b)[kWidth]) { read_weight<T, true>(k.b, c, kWidth, b); },
          other);
    if (Terms::kGated && k.dz) pack<T>(k.dz.row<T>(row) + c, other);
    if (k.dh) {
      unpack<T>(k.dh.row<T>(row) + c, other);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) du[e] = add(du[e], other[e]);
    }
    if (k.dresidual) pack<T>(k.dresidual.row<T>(row) + c, du);
    if (k.dx) pack<T>(k.dx.row<T>(row) + c, du);
  }
#endif
}

/// Up to most_few_elements one cluster, of one block where its warps suffice; else, and up to
/// sixteen times as many, clusters that run at once. rows is 0 where neither is enough.
template <class T>
FewPlan few_plan(const NormBackwardArgs& k) {
  FewPlan plan{.order = RowOrder(k.dy.cols, kLaneWidth<T>)};
  const int64_t rows = k.dy.rows, chunks = plan.order.chunks, elements = rows * k.dy.cols;
  plan.size = static_cast<int>(k.dy.cols), plan.all_rows = static_cast<int>(rows);
  if (k.options.activation == GateActivation::swish) plan.beta = static_cast<float>(k.options.beta);
  // As many chunks to a block as its warps have for so many rows, or as a cluster needs.
  const auto spread = [&](int64_t block_rows) {
    plan.block_chunks = 1;
    while (plan.block_chunks < chunks && (plan.block_chunks * 2 * block_rows <= kFewWarps ||
                                          plan.block_chunks * kMostFewBlocks < chunks))
      plan.block_chunks *= 2;
    plan.cluster = static_cast<int>(ceil_div(chunks, int64_t{plan.block_chunks}));
    return kFewWarps / plan.block_chunks;
  };
  if (elements <= most_few_elements && spread(rows) >= rows)
    return plan.rows = static_cast<int>(rows), plan;
  const int room = spread(1);
  if (room == 0 || elements > 16 * most_few_elements) return plan;
  const int of_cluster = plan.cluster == 1 ? room : 1;
  plan.clusters = static_cast<int>(ceil_div(rows, int64_t{of_cluster}));
  if (plan.clusters * plan.cluster <= kMostFewAtOnce) plan.rows = of_cluster;
  return plan;
}

/// Of what can_ring(): runs it, or says that there are too many rows, or that they lie amiss.
template <class T, GateOrder kGate>
bool backward_few(const Cuda& on, const NormBackwardArgs& k) {
  const auto of_t = [](const auto& t) { return !t || t.dtype == dtype_of<T>; };
  const FewPlan plan = few_plan<T>(k);
  const bool whole_rows = k.options.group == 0 || k.options.group == k.dy.cols;
  if (plan.rows == 0 || !whole_rows || plan.order.lanes < kWarpSize || !of_t(k.h) ||
      !of_t(k.dresidual) || !is_even_all<T>(k, k.dy.cols))
    return false;
  const bool full = k.options.kind == NormKind::layer || k.db;
  const bool many = plan.clusters > 1;
  const auto kernel = full   ? many ? norm_backward_few_kernel<T, kGate, true, true>
                                    : norm_backward_few_kernel<T, kGate, true, false>
                        : many ? norm_backward_few_kernel<T, kGate, false, true>
                             : norm_backward_few_kernel<T, kGate, false, false>;
  const int threads = plan.rows * plan.block_chunks * kWarpSize;
  if (plan.cluster > 8 &&
      resident_clusters(on, reinterpret_cast<const void*>(kernel), threads, 0, plan.cluster) == 0)
    return false;
  WeightSums<float> sums(k);
  const DeviceScratch<float> scratch(
      on, many ? std::max<int64_t>(1, plan.clusters * sums.worker_size()) : 1);
  sums.data = scratch.data();
  launch(on,
         {.grid = dim3(static_cast<unsigned>(plan.clusters * plan.cluster)),
          .block = dim3(static_cast<unsigned>(threads)),
          .cluster = static_cast<unsigned>(plan.cluster),
          .overlap = true},
         kernel, k, plan, sums);
  if (many) fold(on, sums, plan.clusters, k);
  return true;
}

}  // namespace norma::norm_cuda
