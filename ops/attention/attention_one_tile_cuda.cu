#include "norma/core/cuda/early.h"
#include "norma/core/cuda/mma.cuh"
#include "norma/core/cuda/reduce.cuh"
#include "norma/ops/attention/one_tile.h"
#include "norma/ops/attention/problem.cuh"
#include "norma/ops/matmul/matmul.h"

namespace norma::attention {
namespace {

// With so little to do a warp's number of instructions is what takes time, at 5 cycles each, so 16
// warps share a head: each has 16 rows and 16 columns of the scores, then 16 rows and a quarter of
// the columns of what is summed. Probabilities pass through shared memory in between. All factors
// are rounded to tf32 as they get there.

constexpr int kTile = 64, kWarps = 16, kThreads = kWarps * kWarpSize;
// Rows apart, so that a warp's accesses meet in few banks.
template <int kHead>
constexpr int kPitch = kHead + 4;
constexpr int kScorePitch = kTile + 8;

struct Lane {
  int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = threadIdx.x % kWarpSize;
  int g = lane / 4, q = lane % 4;
  int row0 = warp % 4 * 16, part = warp / 4;  ///< first row, and which quarter of the columns

  __device__ int row(int h) const { return row0 + g + 8 * h; }
};

/// a (16 × 8) from rows of `pitch` floats, as mma_tf32 takes it.
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const float* tile, int pitch, int row,
                                       int term, int lane) {
  load_matrices(a, tile + (row + lane % 16) * pitch + term + lane / 16 * 4);
}
/// Two b (8 × 8), columns from `col` and 8 further, that lie as rows.
__device__ __forceinline__ void load_b(uint32_t (&b)[4], const float* tile, int pitch, int col,
                                       int term, int lane) {
  load_matrices(b, tile + (col + lane / 16 * 8 + lane % 8) * pitch + term + lane / 8 % 2 * 4);
}
__device__ __forceinline__ uint32_t bits(float v) { return __float_as_uint(v); }

/// 16 rows of a by 16 rows of b.
template <int kHead>
__device__ __forceinline__ void multiply_rows(float (&c)[2][4], const float* a, const float* b,
                                              const Lane& l) {
#pragma unroll
  for (int term = 0; term < kHead; term += 8) {
    uint32_t af[4], bf[4];
    load_a(af, a, kPitch<kHead>, l.row0, term, l.lane);
    load_b(bf, b, kPitch<kHead>, l.part * 16, term, l.lane);
#pragma unroll
    for (int t = 0; t < 2; ++t)
      mma_tf32(c[t][0], c[t][1], c[t][2], c[t][3], af[0], af[1], af[2], af[3], bf[2 * t],
               bf[2 * t + 1]);
  }
}

/// A warp's share of a product with 64 terms: kHead / 4 columns.
template <int kHead>
struct Sums {
  static constexpr int kTiles = kHead / 32;
  float c[kTiles][4] = {};

  /// a (16 × 8), terms from `term`, by the same rows of b.
  __device__ __forceinline__ void add(const uint32_t (&a)[4], const float* b, int term,
                                      const Lane& l) {
    const float* p = b + (term + l.q) * kPitch<kHead> + l.part * (kHead / 4) + l.g;
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
      mma_tf32(c[t][0], c[t][1], c[t][2], c[t][3], a[0], a[1], a[2], a[3], bits(p[8 * t]),
               bits(p[8 * t + 4 * kPitch<kHead>]));
  }
  __device__ __forceinline__ void store(const Heads& to, int batch, int head, int rows, float scale,
                                        const Lane& l) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (l.row(h) >= rows) continue;
      float* p = to.at<float>(batch, head, l.row(h)) + l.part * (kHead / 4) + 2 * l.q;
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
        norma::store(p + 8 * t, Packed<float, 2>{c[t][2 * h] * scale, c[t][2 * h + 1] * scale});
    }
  }
};

/// What thread n loads: four elements of a row; the rows beyond are zeros.
template <int kHead>
struct Place4 {
  static constexpr int kPieces = kHead / 4, kRounds = kTile * kPieces / kThreads;
  int row, col;
  __device__ explicit Place4(int round)
      : row((round * kThreads + static_cast<int>(threadIdx.x)) / kPieces),
        col(threadIdx.x % kPieces * 4) {}
  __device__ Packed<float, 4> read(const Heads& from, int b, int h, int rows) const {
    return row < rows ? load<4>(from.at<const float>(b, h, row) + col) : Packed<float, 4>{};
  }
  __device__ void put(float* tile, const Packed<float, 4>& v) const {
    Packed<float, 4> rounded;
#pragma unroll
    for (int e = 0; e < 4; ++e) rounded[e] = __uint_as_float(to_tf32(v[e]));
    store(tile + row * kPitch<kHead> + col, rounded);
  }
};

/// Two neighbouring scores to shared memory.
__device__ __forceinline__ void put_scores(float* scores, int row, int col, float a, float b) {
  store(scores + row * kScorePitch + col,
        Packed<float, 2>{__uint_as_float(to_tf32(a)), __uint_as_float(to_tf32(b))});
}

template <int kHead>
__global__ void __launch_bounds__(kThreads)
    attention_forward_one_tile_kernel(const __grid_constant__ ForwardProblem<float> k) {
  extern __shared__ __align__(16) float shared[];
  __shared__ Packed<float, 4> largest[kTile], sums[kTile];  // of each quarter of a row
  float *queries = shared, *keys = queries + kTile * kPitch<kHead>,
        *values = keys + kTile * kPitch<kHead>, *scores = values + kTile * kPitch<kHead>;
  const Sizes& n = k.sizes;
  const int batch = static_cast<int>(blockIdx.x) / n.heads, head = blockIdx.x % n.heads;
  const Lane l;
  wait_for_previous_kernel();
#pragma unroll
  for (int round = 0; round < Place4<kHead>::kRounds; ++round) {
    const Place4<kHead> at(round);
    const auto q = at.read(k.q, batch, head, n.queries), s = at.read(k.k, batch, head, n.keys),
               v = at.read(k.v, batch, head, n.keys);
    at.put(queries, q), at.put(keys, s), at.put(values, v);
  }
  __syncthreads();

  float s[2][4] = {}, own[2];
  multiply_rows<kHead>(s, queries, keys, l);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int seen = n.end_of_keys(l.row(h) + 1) - l.part * 16 - 2 * l.q;
    float most = -INFINITY, sum = 0;
#pragma unroll
    for (int t = 0; t < 2; ++t)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& v = s[t][2 * h + e];
        v = 8 * t + e < seen ? v * k.scale_log2 : -INFINITY;
        most = v > most ? v : most;
      }
    most = warp_max<4>(most);
    const float base = most == -INFINITY ? 0 : most;
#pragma unroll
    for (int t = 0; t < 2; ++t)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& v = s[t][2 * h + e];
        v = exp2f(v - base);
        sum += v;
      }
    sum = warp_sum<4>(sum);
    own[h] = most;
    if (l.q == 0) largest[l.row(h)][l.part] = most, sums[l.row(h)][l.part] = sum;
  }
  __syncthreads();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = l.row(h);
    const auto tops = largest[row], parts = sums[row];
    const float top = fmaxf(fmaxf(tops[0], tops[1]), fmaxf(tops[2], tops[3]));
    // A NaN among the scores is in its part's sum.
    const float base = top == -INFINITY ? 0 : top;
    float total = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) total += parts[j] * exp2f(tops[j] - base);
    const float factor = exp2f(own[h] - base) / total;
#pragma unroll
    for (int t = 0; t < 2; ++t)
      put_scores(scores, row, l.part * 16 + 8 * t + 2 * l.q, s[t][2 * h] * factor,
                 s[t][2 * h + 1] * factor);
    if (l.part == 0 && l.q == 0 && row < n.queries)
      k.lse[n.row(batch, head, row)] = base * float(kLn2) + logf(total);
  }
  __syncthreads();

  Sums<kHead> y;
#pragma unroll 4
  for (int term = 0; term < kTile; term += 8) {
    uint32_t a[4];
    load_a(a, scores, kScorePitch, l.row0, term, l.lane);
    y.add(a, values, term, l);
  }
  y.store(k.y, batch, head, n.queries, 1, l);
}

/// a = scoresᵀ (16 × 8): rows are keys from row0, terms queries.
__device__ __forceinline__ void load_transposed(uint32_t (&a)[4], const float* scores, int term,
                                                const Lane& l) {
  const float* p = scores + (term + l.q) * kScorePitch + l.row0 + l.g;
  a[0] = bits(p[0]), a[1] = bits(p[8]);
  a[2] = bits(p[4 * kScorePitch]), a[3] = bits(p[4 * kScorePitch + 8]);
}

template <int kHead>
__global__ void __launch_bounds__(kThreads)
    attention_backward_one_tile_kernel(const __grid_constant__ BackwardProblem<float> k,
                                       bool early) {
  extern __shared__ __align__(16) float shared[];
  __shared__ float lse_log2[kTile], deltas[kTile];
  constexpr int kSize = kTile * kPitch<kHead>;
  float *queries = shared, *keys = queries + kSize, *values = keys + kSize, *dys = values + kSize,
        *ps = dys + kSize, *dss = ps + kTile * kScorePitch;
  const Sizes& n = k.sizes;
  const int batch = static_cast<int>(blockIdx.x) / n.heads, head = blockIdx.x % n.heads;
  const Lane l;
  constexpr int kRounds = Place4<kHead>::kRounds;
  Packed<float, 4> y[kRounds], dy[kRounds];
  const auto begin = [&] {
    wait_for_previous_kernel();
#pragma unroll
    for (int round = 0; round < kRounds; ++round)
      dy[round] = Place4<kHead>(round).read(k.dy, batch, head, n.queries);
  };
  if (!early) begin();
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const Place4<kHead> at(round);
    const auto q = at.read(k.q, batch, head, n.queries), s = at.read(k.k, batch, head, n.keys),
               v = at.read(k.v, batch, head, n.keys);
    y[round] = at.read(k.y, batch, head, n.queries);
    at.put(queries, q), at.put(keys, s), at.put(values, v);
  }
  if (const int t = threadIdx.x; t < kTile)  // rows beyond the queries have probability 0
    lse_log2[t] =
        t < n.queries ? k.lse[n.row(batch, head, t)] * static_cast<float>(kLog2E) : INFINITY;
  __syncthreads();

  float p[2][4] = {};
  multiply_rows<kHead>(p, queries, keys, l);
  const auto each_pair = [&](const auto& f) {  // f(t, i, row, col, which of the two are seen)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = l.row(h), seen = n.end_of_keys(row + 1) - l.part * 16 - 2 * l.q;
#pragma unroll
      for (int t = 0; t < 2; ++t)
        f(t, 2 * h, row, l.part * 16 + 8 * t + 2 * l.q, 8 * t < seen, 8 * t + 1 < seen);
    }
  };
  each_pair([&](int t, int i, int row, int col, bool first, bool second) {
    const float lse = lse_log2[row];
    p[t][i] = first ? exp2f(p[t][i] * k.scale_log2 - lse) : 0;
    p[t][i + 1] = second ? exp2f(p[t][i + 1] * k.scale_log2 - lse) : 0;
    put_scores(ps, row, col, p[t][i], p[t][i + 1]);
  });
  if (early) begin();
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const Place4<kHead> at(round);
    const auto &a = dy[round], &b = y[round];
    at.put(dys, a);
    const float delta =
        warp_sum<Place4<kHead>::kPieces>((a[0] * b[0] + a[1] * b[1]) + (a[2] * b[2] + a[3] * b[3]));
    if (at.col == 0) deltas[at.row] = delta;
  }
  __syncthreads();

  {
    float dp[2][4] = {};
    multiply_rows<kHead>(dp, dys, values, l);
    each_pair([&](int t, int i, int row, int col, bool first, bool second) {
      const float delta = deltas[row];
      put_scores(dss, row, col, first ? p[t][i] * (dp[t][i] - delta) : 0,
                 second ? p[t][i + 1] * (dp[t][i + 1] - delta) : 0);
    });
  }
  __syncthreads();

  Sums<kHead> dq, dk, dv;
#pragma unroll 4
  for (int term = 0; term < kTile; term += 8) {
    uint32_t a[4];
    load_a(a, dss, kScorePitch, l.row0, term, l.lane);
    dq.add(a, keys, term, l);
    load_transposed(a, dss, term, l);
    dk.add(a, queries, term, l);
    load_transposed(a, ps, term, l);
    dv.add(a, dys, term, l);
  }
  dq.store(k.dq, batch, head, n.queries, k.scale, l);
  dk.store(k.dk, batch, head, n.keys, k.scale, l);
  dv.store(k.dv, batch, head, n.keys, 1, l);
}

template <class T>
bool is_one_tile(const ConstView& q, const Problem<T>& k) {
  const Sizes& n = k.sizes;
  return q.dtype == float32 && is_tf32_allowed() && k.wide && !k.dropout && n.queries <= kTile &&
         n.keys <= kTile && n.queries > 0 && n.keys > 0 && n.shared() == 1 &&
         (n.dim == 32 || n.dim == 64);
}
LaunchShape shape_for(const Sizes& n, int tiles, int scores) {
  return {.grid = dim3(static_cast<unsigned>(n.batches * n.heads)),
          .block = dim3(kThreads),
          .shared = sizeof(float) * kTile * (tiles * (n.dim + 4) + scores * kScorePitch),
          .overlap = true};
}

}  // namespace

bool forward_one_tile(const Cuda& on, const AttentionForwardArgs& a) {
  if (a.q.dtype != float32) return false;
  const ForwardProblem<float> k(a);
  if (!is_one_tile(a.q, k)) return false;
  launch(on, shape_for(k.sizes, 3, 1),
         k.sizes.dim == 32 ? attention_forward_one_tile_kernel<32>
                           : attention_forward_one_tile_kernel<64>,
         k);
  return true;
}
bool backward_one_tile(const Cuda& on, const AttentionBackwardArgs& a) {
  if (a.q.dtype != float32) return false;
  const BackwardProblem<float> k(a);
  if (!is_one_tile(a.q, k)) return false;
  launch(on, shape_for(k.sizes, 4, 2),
         k.sizes.dim == 32 ? attention_backward_one_tile_kernel<32>
                           : attention_backward_one_tile_kernel<64>,
         k, a.settled && detail::may_read_early(on));
  return true;
}

}  // namespace norma::attention
