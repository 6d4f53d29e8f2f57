#pragma once

#include "norma/ops/attention/portable_forward.cuh"

namespace norma::attention {

// Two passes, so that every sum has one owner and one order: the first makes dq (and delta) for a
// tile of queries, the second dk and dv for a tile of keys. Each makes the probabilities again.
// Short rows need but one.

/// ds = p ⊙ (dp − delta) of a tile of queries from `first`, the rows, and keys from first_key.
/// row0: the first query among all.
template <class Tile, class T, class Acc = typename Tile::Acc>
__device__ __forceinline__ typename Tile::Scores score_gradients(
    const Tile& tile, const BackwardProblem<T>& k, const T* queries, const T* dys, const T* keys,
    const T* values, const Acc (&lse_log2)[Tile::kRows], const Acc (&delta)[Tile::kRows],
    int64_t row0, int first, int first_key) {
  typename Tile::Scores p, dy_v;
  tile.multiply_rows(p, queries, keys);
  tile.multiply_rows(dy_v, dys, values);
  uint32_t kept = ~0u;
  if (k.dropout) kept = tile.kept(k.dropout, row0, first_key);
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const int seen = k.sizes.end_of_keys(first + tile.row(i) + 1) - first_key;
#pragma unroll
    for (int j = 0; j < Tile::kCols; ++j) {
      const Acc dp = bit(kept, i * Tile::kCols + j) ? dy_v.v[i][j] * k.rescale : 0;
      const Acc probability = exp2_of(p.v[i][j] * k.scale_log2 - lse_log2[i]);
      p.v[i][j] = tile.col(j) < seen ? probability * (dp - delta[i]) : 0;
    }
  }
  return p;
}

/// The same transposed, rows being keys: p ⊙ m and ds. lse_log2 and delta: of the queries.
template <class Tile, class T, class Acc = typename Tile::Acc>
__device__ __forceinline__ void transposed_gradients(typename Tile::Scores& p,
                                                     typename Tile::Scores& ds, const Tile& tile,
                                                     const BackwardProblem<T>& k, const T* queries,
                                                     const T* dys, const T* keys, const T* values,
                                                     const Acc* lse_log2, const Acc* delta,
                                                     int64_t row0, int first, int first_key) {
  tile.multiply_rows(p, keys, queries);
  tile.multiply_rows(ds, values, dys);
#pragma unroll
  for (int j = 0; j < Tile::kCols; ++j) {
    const int t = tile.col(j), seen = k.sizes.end_of_keys(first + t + 1) - first_key;
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i)
      p.v[i][j] = tile.row(i) < seen ? exp2_of(p.v[i][j] * k.scale_log2 - lse_log2[t]) : Acc(0);
  }
  uint32_t kept = ~0u;
  if (k.dropout) kept = tile.kept_transposed(k.dropout, row0, first_key);
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i)
#pragma unroll
    for (int j = 0; j < Tile::kCols; ++j) {
      const bool keep = bit(kept, i * Tile::kCols + j);
      const Acc dp = keep ? ds.v[i][j] * k.rescale : 0;
      ds.v[i][j] = p.v[i][j] * (dp - delta[tile.col(j)]);
      p.v[i][j] = keep ? p.v[i][j] : 0;
    }
}

/// Σ dy ⊙ y of each of this thread's rows.
template <class Tile, class T, class Acc = typename Tile::Acc>
__device__ __forceinline__ void sum_delta(Acc (&delta)[Tile::kRows], const Tile& tile, const T* dys,
                                          const T* ys, int dim) {
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const T *dy = dys + tile.row(i) * Tile::kPitch, *y = ys + tile.row(i) * Tile::kPitch;
    Acc sum = 0;
    for (int c = tile.lane_of_row(); c < dim; c += Tile::kRowLanes)
      sum += convert<Acc>(dy[c]) * convert<Acc>(y[c]);
    delta[i] = warp_sum<Tile::kRowLanes>(sum);
  }
}

template <class Tile, class T = typename Tile::Element>
__global__ void __launch_bounds__(Tile::kThreads)
    attention_dq_kernel(const __grid_constant__ BackwardProblem<T> k) {
  using Acc = typename Tile::Acc;
  extern __shared__ __align__(16) unsigned char shared[];
  T *queries = reinterpret_cast<T*>(shared), *dys = queries + Tile::kElements,
    *keys = dys + Tile::kElements, *values = keys + Tile::kStepElements;
  const Tile tile(values + Tile::kStepElements);
  const Sizes& n = k.sizes;
  const auto [batch, head, first] = query_tile(n, Tile::kTile, blockIdx.x);
  const int kv_head = head / n.shared(), length = min(Tile::kTile, n.queries - first);
  const auto load_own = [&](T* to, const Heads& from, int h) {
    load_tile<Tile, Tile::kTile>(to, from.at<const T>(batch, h, first), from.row, length, n.dim,
                                 k.wide);
  };
  const auto load_step = [&](T* to, const Heads& from, int h, int at, int rows) {
    load_tile<Tile, Tile::kStep>(to, from.at<const T>(batch, h, at), from.row, rows, n.dim, k.wide);
  };
  wait_for_previous_kernel();
  load_own(queries, k.q, head);
  load_own(dys, k.dy, head);
  load_own(keys, k.y, head);  // where two steps' tiles will be
  __syncthreads();

  Acc lse_log2[Tile::kRows], delta[Tile::kRows];
  sum_delta(delta, tile, dys, keys, n.dim);
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const int t = tile.row(i);
    lse_log2[i] = 0;
    if (t >= length) continue;
    const int64_t row = n.row(batch, head, first + t);
    lse_log2[i] = k.lse[row] * Acc(kLog2E);
    if (tile.lane_of_row() == 0) k.delta[row] = delta[i];
  }

  typename Tile::Out dq;
  const int end = n.end_of_keys(first + length);
  for (int first_key = 0; first_key < end; first_key += Tile::kStep) {
    const int rows = min(Tile::kStep, n.keys - first_key);
    __syncthreads();
    load_step(keys, k.k, kv_head, first_key, rows);
    load_step(values, k.v, kv_head, first_key, rows);
    __syncthreads();
    const auto ds = score_gradients(tile, k, queries, dys, keys, values, lse_log2, delta,
                                    n.row(batch, head, first), first, first_key);
    tile.add_product(dq, ds, keys);
  }
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const int t = tile.row(i);
    if (t < length)
      store_row<Tile>(k.dq.template at<T>(batch, head, first + t), dq.v[i], k.scale, n.dim, k.wide);
  }
}

/// Rows are keys and columns queries. blockIdx.y: which kOut columns of dk and dv.
template <class Tile, class T = typename Tile::Element>
__global__ void __launch_bounds__(Tile::kThreads)
    attention_dkv_kernel(const __grid_constant__ BackwardProblem<T> k) {
  using Acc = typename Tile::Acc;
  extern __shared__ __align__(16) unsigned char shared[];
  T *keys = reinterpret_cast<T*>(shared), *values = keys + Tile::kElements,
    *queries = values + Tile::kElements, *dys = queries + Tile::kStepElements;
  const Tile tile(dys + Tile::kStepElements);
  Acc *lse_log2 = reinterpret_cast<Acc*>(dys + Tile::kStepElements + Tile::kScratch),
      *delta = lse_log2 + Tile::kStep;
  const Sizes& n = k.sizes;
  const int kv_heads = n.batches * n.kv_heads, kv = static_cast<int>(blockIdx.x % kv_heads);
  const int batch = kv / n.kv_heads, kv_head = kv % n.kv_heads;
  const int first_key = static_cast<int>(blockIdx.x / kv_heads) * Tile::kTile;
  const int length = min(Tile::kTile, n.keys - first_key), from_column = blockIdx.y * Tile::kOut;
  const auto load_own = [&](T* to, const Heads& from, int h) {
    load_tile<Tile, Tile::kTile>(to, from.at<const T>(batch, h, first_key), from.row, length, n.dim,
                                 k.wide);
  };
  const auto load_step = [&](T* to, const Heads& from, int h, int at, int rows) {
    load_tile<Tile, Tile::kStep>(to, from.at<const T>(batch, h, at), from.row, rows, n.dim, k.wide);
  };
  wait_for_previous_kernel();
  load_own(keys, k.k, kv_head);
  load_own(values, k.v, kv_head);

  typename Tile::Out dk, dv;
  const int start = n.first_query(first_key) / Tile::kStep * Tile::kStep;
  for (int head = kv_head * n.shared(); head < (kv_head + 1) * n.shared(); ++head)
    for (int first = start; first < n.queries; first += Tile::kStep) {
      const int rows = min(Tile::kStep, n.queries - first);
      __syncthreads();
      load_step(queries, k.q, head, first, rows);
      load_step(dys, k.dy, head, first, rows);
      if (const int t = threadIdx.x; t < Tile::kStep) {
        const int64_t row = n.row(batch, head, first + t);
        lse_log2[t] = t < rows ? k.lse[row] * Acc(kLog2E) : Acc(INFINITY);  // probability 0
        delta[t] = t < rows ? k.delta[row] : 0;
      }
      __syncthreads();
      typename Tile::Scores p, ds;
      transposed_gradients(p, ds, tile, k, queries, dys, keys, values, lse_log2, delta,
                           n.row(batch, head, first), first, first_key);
      tile.add_product(dv, p, dys + from_column);
      tile.add_product(dk, ds, queries + from_column);
    }
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const int s = tile.row(i), dim = n.dim - from_column;
    if (s >= length) continue;
    store_row<Tile>(k.dk.template at<T>(batch, kv_head, first_key + s) + from_column, dk.v[i],
                    k.scale, dim, k.wide);
    store_row<Tile>(k.dv.template at<T>(batch, kv_head, first_key + s) + from_column, dv.v[i],
                    k.rescale, dim, k.wide);
  }
}

/// Where one tile holds all queries and one all keys of a head: everything in one pass.
template <class Tile, class T = typename Tile::Element>
__global__ void __launch_bounds__(Tile::kThreads)
    attention_backward_tile_kernel(const __grid_constant__ BackwardProblem<T> k) {
  using Acc = typename Tile::Acc;
  extern __shared__ __align__(16) unsigned char shared[];
  T *queries = reinterpret_cast<T*>(shared), *dys = queries + Tile::kElements,
    *keys = dys + Tile::kElements, *values = keys + Tile::kElements, *ys = values + Tile::kElements;
  const Tile tile(ys + Tile::kElements);
  Acc *lse_log2 = reinterpret_cast<Acc*>(ys + Tile::kElements + Tile::kScratch),
      *deltas = lse_log2 + Tile::kStep;
  const Sizes& n = k.sizes;
  const int batch = static_cast<int>(blockIdx.x) / n.heads, head = blockIdx.x % n.heads;
  const int64_t row0 = n.row(batch, head, 0);
  wait_for_previous_kernel();
  const auto load_own = [&](T* to, const Heads& from, int rows) {
    load_tile<Tile, Tile::kTile>(to, from.at<const T>(batch, head), from.row, rows, n.dim, k.wide);
  };
  load_own(queries, k.q, n.queries), load_own(dys, k.dy, n.queries), load_own(ys, k.y, n.queries);
  load_own(keys, k.k, n.keys), load_own(values, k.v, n.keys);
  if (const int t = threadIdx.x; t < Tile::kStep)  // rows beyond the queries have probability 0
    lse_log2[t] = t < n.queries ? k.lse[row0 + t] * Acc(kLog2E) : Acc(INFINITY);
  __syncthreads();

  Acc delta[Tile::kRows], own_lse[Tile::kRows];
  sum_delta(delta, tile, dys, ys, n.dim);
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    own_lse[i] = lse_log2[tile.row(i)];
    if (tile.lane_of_row() == 0) deltas[tile.row(i)] = delta[i];
  }
  typename Tile::Out dq;
  {
    const auto ds =
        score_gradients(tile, k, queries, dys, keys, values, own_lse, delta, row0, 0, 0);
    tile.add_product(dq, ds, keys);
  }
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i)
    if (const int t = tile.row(i); t < n.queries)
      store_row<Tile>(k.dq.template at<T>(batch, head, t), dq.v[i], k.scale, n.dim, k.wide);
  __syncthreads();

  typename Tile::Scores p, ds;
  transposed_gradients(p, ds, tile, k, queries, dys, keys, values, lse_log2, deltas, row0, 0, 0);
  typename Tile::Out dk, dv;
  tile.add_product(dv, p, dys);
  tile.add_product(dk, ds, queries);
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const int s = tile.row(i);
    if (s >= n.keys) continue;
    store_row<Tile>(k.dk.template at<T>(batch, head, s), dk.v[i], k.scale, n.dim, k.wide);
    store_row<Tile>(k.dv.template at<T>(batch, head, s), dv.v[i], k.rescale, n.dim, k.wide);
  }
}

template <class T>
void backward_portable(const Cuda& on, const AttentionBackwardArgs& a) {
  const BackwardProblem<element_t<T>> k(a);
  visit_head<T>(k.sizes.dim, [&]<int kHead>() {
    using Tile = TileOf<T, kHead>;
    if constexpr (kHead <= 64 && Tile::kStep == Tile::kTile)
      if (k.sizes.queries <= Tile::kTile && k.sizes.keys <= Tile::kTile && k.sizes.shared() == 1)
        return launch(on,
                      {.grid = dim3(static_cast<unsigned>(k.sizes.batches * k.sizes.heads)),
                       .block = dim3(Tile::kThreads),
                       .shared = shared_bytes<Tile>(5, 0, 2),
                       .overlap = true},
                      attention_backward_tile_kernel<Tile>, k);
    const int64_t blocks = a.q.shape[0] * a.q.shape[1] * ceil_div(a.q.shape[2], Tile::kTile);
    launch(on,
           {.grid = dim3(static_cast<unsigned>(blocks)),
            .block = dim3(Tile::kThreads),
            .shared = shared_bytes<Tile>(2, 2),
            .overlap = true},
           attention_dq_kernel<Tile>, k);
    // The sums of wide heads in parts: two of 256 columns would take all registers.
    constexpr int kParts = kHead > 128 ? 2 : 1;
    using Part = TileOf<T, kHead, kHead / kParts>;
    const int64_t key_blocks = a.k.shape[0] * a.k.shape[1] * ceil_div(a.k.shape[2], Part::kTile);
    launch(on,
           {.grid = dim3(static_cast<unsigned>(key_blocks), kParts),
            .block = dim3(Part::kThreads),
            .shared = shared_bytes<Part>(2, 2, 2),
            .overlap = true},
           attention_dkv_kernel<Part>, k);
  });
}

}  // namespace norma::attention
