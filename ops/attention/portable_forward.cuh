#pragma once

#include "norma/ops/attention/portable.h"
#include "norma/ops/attention/tiles.cuh"

namespace norma::attention {

__device__ __forceinline__ float exp2_of(float v) { return exp2f(v); }
__device__ __forceinline__ double exp2_of(double v) { return exp2(v); }

/// The tile of block `block`: the tiles of all heads that take longest (the last queries) first.
__device__ inline Place query_tile(const Sizes& sizes, int tile, int64_t block) {
  const int heads = sizes.batches * sizes.heads, tiles = ceil_div(sizes.queries, tile);
  const int head = static_cast<int>(block % heads), index = tiles - 1 - int(block / heads);
  return {head / sizes.heads, head % sizes.heads, index * tile};
}

/// One block a tile of queries: for each tile of keys scores, their softmax so far (Milakov &
/// Gimelshein 2018, arXiv:1805.02867), and the values' sum. T × S numbers never leave registers.
template <class Tile, class T = typename Tile::Element>
__global__ void __launch_bounds__(Tile::kThreads)
    attention_forward_kernel(const __grid_constant__ ForwardProblem<T> k) {
  using Acc = typename Tile::Acc;
  constexpr Acc kNever = -INFINITY;
  extern __shared__ __align__(16) unsigned char shared[];
  T *queries = reinterpret_cast<T*>(shared), *keys = queries + Tile::kElements,
    *values = keys + Tile::kStepElements;
  const Tile tile(values + Tile::kStepElements);
  const Sizes& n = k.sizes;
  const auto [batch, head, first] = query_tile(n, Tile::kTile, blockIdx.x);
  const int kv_head = head / n.shared(), length = min(Tile::kTile, n.queries - first);
  wait_for_previous_kernel();
  load_tile<Tile, Tile::kTile>(queries, k.q.template at<const T>(batch, head, first), k.q.row,
                               length, n.dim, k.wide);

  typename Tile::Out y;
  Acc largest[Tile::kRows], sum[Tile::kRows];
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) largest[i] = kNever, sum[i] = 0;
  const int end = n.end_of_keys(first + length);
  for (int first_key = 0; first_key < end; first_key += Tile::kStep) {
    const int rows = min(Tile::kStep, n.keys - first_key);
    __syncthreads();
    load_tile<Tile, Tile::kStep>(keys, k.k.template at<const T>(batch, kv_head, first_key), k.k.row,
                                 rows, n.dim, k.wide);
    load_tile<Tile, Tile::kStep>(values, k.v.template at<const T>(batch, kv_head, first_key),
                                 k.v.row, rows, n.dim, k.wide);
    __syncthreads();
    typename Tile::Scores p;
    tile.multiply_rows(p, queries, keys);
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i) {
      const int seen = n.end_of_keys(first + tile.row(i) + 1) - first_key;
      Acc now = largest[i];
#pragma unroll
      for (int j = 0; j < Tile::kCols; ++j) {
        p.v[i][j] = tile.col(j) < seen ? p.v[i][j] * k.scale_log2 : kNever;
        now = p.v[i][j] > now ? p.v[i][j] : now;
      }
      now = warp_max<Tile::kRowLanes>(now);
      const Acc base = now == kNever ? 0 : now, factor = exp2_of(largest[i] - base);
      largest[i] = now;
      sum[i] *= factor;  // a lane's own part: the lanes' sum comes last
#pragma unroll
      for (int j = 0; j < Tile::kCols; ++j) {
        p.v[i][j] = exp2_of(p.v[i][j] - base);
        sum[i] += p.v[i][j];
      }
#pragma unroll
      for (int j = 0; j < Tile::kOutCols; ++j) y.v[i][j] *= factor;
    }
    if (k.dropout) {
      const uint32_t kept = tile.kept(k.dropout, n.row(batch, head, first), first_key);
#pragma unroll
      for (int i = 0; i < Tile::kRows; ++i)
#pragma unroll
        for (int j = 0; j < Tile::kCols; ++j)
          if (!bit(kept, i * Tile::kCols + j)) p.v[i][j] = 0;
    }
    tile.add_product(y, p, values);
  }

#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const Acc total = warp_sum<Tile::kRowLanes>(sum[i]);
    const int t = tile.row(i);
    if (t >= length) continue;
    store_row<Tile>(k.y.template at<T>(batch, head, first + t), y.v[i],
                    end > 0 ? k.rescale / total : Acc(0), n.dim, k.wide);
    if (tile.lane_of_row() == 0)
      k.lse[n.row(batch, head, first + t)] = largest[i] * Acc(kLn2) + log_of(total);
  }
}

/// f.template operator()<kHead>() with the smallest tile's width that holds `dim`. Each is kernels
/// to compile: float64, which checks gradients, has two.
template <class T, class F>
void visit_head(int64_t dim, const F& f) {
  constexpr bool kDouble = std::is_same_v<T, double>;
  if constexpr (!kDouble)
    if (dim <= 32) return f.template operator()<32>();
  if (dim <= 64) return f.template operator()<64>();
  if constexpr (!kDouble)
    if (dim <= 128) return f.template operator()<128>();
  if constexpr (is_half<T>)
    if (dim <= 192) return f.template operator()<192>();
  if constexpr (!std::is_same_v<T, Tf32>) f.template operator()<256>();
}

/// For tiles of the block's own, tiles that pass, and rows of numbers for each passing row.
template <class Tile>
constexpr size_t shared_bytes(int own, int passing, int numbers = 0) {
  const int elements = own * Tile::kElements + passing * Tile::kStepElements + Tile::kScratch;
  return size_t(elements) * sizeof(typename Tile::Element) +
         size_t(numbers) * Tile::kStep * sizeof(typename Tile::Acc);
}

template <class T>
using element_t = std::conditional_t<std::is_same_v<T, Tf32>, float, T>;

template <class T>
void forward_portable(const Cuda& on, const AttentionForwardArgs& a) {
  const ForwardProblem<element_t<T>> k(a);
  visit_head<T>(k.sizes.dim, [&]<int kHead>() {
    using Tile = TileOf<T, kHead>;
    const int64_t blocks = a.q.shape[0] * a.q.shape[1] * ceil_div(a.q.shape[2], Tile::kTile);
    launch(on,
           {.grid = dim3(static_cast<unsigned>(blocks)),
            .block = dim3(Tile::kThreads),
            .shared = shared_bytes<Tile>(1, 2),
            .overlap = true},
           attention_forward_kernel<Tile>, k);
  });
}

}  // namespace norma::attention
