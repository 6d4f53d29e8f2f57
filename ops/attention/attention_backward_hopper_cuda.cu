#include "norma/ops/attention/hopper.cuh"
#include "norma/ops/attention/hopper.h"

// Two kernels, as in portable_backward.cuh: dq owns tiles of queries, dkv tiles of keys. Seven
// products where one pass would need five, but no sum is shared by blocks and no number leaves the
// registers of the warps that made it: probabilities are the next product's left operand.

namespace norma::attention {
namespace {

constexpr int kLoaderRegisters = 40, kComputeRegisters = 232;
constexpr int kStep = 64;  // rows of a stage: keys for dq, queries for dkv
constexpr int kScores = kStep / 2;

template <class T, int kHead>
struct Shared {
  static constexpr int kOwned = kHead == 64 ? 2 : 1, kStages = 4;
  T first[kOwned][kTileRows * kHead], second[kOwned][kTileRows * kHead];  // q and dy, or k and v
  T left[kStages][kStep * kHead], right[kStages][kStep * kHead];          // k and v, or q and dy
  float lse_log2[kStages][kStep], delta[kStages][kStep];                  // dkv's
  Barriers<kOwned> of_owned;
  Barriers<kStages> of_steps;
};

struct Maps {
  CUtensorMap first, second, left, right;
};

/// dq: a tile of queries, and the keys they see.
struct QueryTile {
  int batch, head, first, steps;
  __device__ QueryTile(const Sizes& n, const Schedule& work, int64_t index) {
    const auto item = work.item(index);
    batch = item.head / n.heads, head = item.head % n.heads;
    first = (work.tiles - 1 - item.level) * kTileRows;
    steps = ceil_div(n.end_of_keys(min(first + kTileRows, n.queries)), kStep);
  }
};

/// dkv: a tile of keys, and the queries of all sharing heads that see them.
struct KeyTile {
  int batch, kv_head, first, start, steps;  ///< steps a head, from query `start`
  __device__ KeyTile(const Sizes& n, const Schedule& work, int64_t index) {
    const auto item = work.item(index);
    batch = item.head / n.kv_heads, kv_head = item.head % n.kv_heads;
    first = item.level * kTileRows;
    start = n.first_query(first) / kStep * kStep;
    steps = ceil_div(n.queries - start, kStep);
  }
};

template <class T, int kHead>
__device__ __forceinline__ void copy_pair(T* a, T* b, const CUtensorMap& of_a,
                                          const CUtensorMap& of_b, SharedBarrier& done, int first,
                                          int head, int batch, bool owned) {
  const int rows = owned ? kTileRows : kStep;
  done.expect(2 * rows * kHead * int(sizeof(T)));
  if (owned) {
    copy_rows<kTileRows, kHead>(a, of_a, done, first, head, batch);
    copy_rows<kTileRows, kHead>(b, of_b, done, first, head, batch);
  } else {
    copy_rows<kStep, kHead>(a, of_a, done, first, head, batch);
    copy_rows<kStep, kHead>(b, of_b, done, first, head, batch);
  }
}

template <class T, int kHead>
__device__ void load_for_dq(Shared<T, kHead>& m, const Maps& maps, const Sizes& n,
                            const Schedule& work) {
  Ring<Shared<T, kHead>::kOwned> owned;
  Ring<Shared<T, kHead>::kStages> at;
  for (int turn = 0; work.index(turn) < work.count(); ++turn, owned.next()) {
    const QueryTile tile(n, work, work.index(turn));
    copy_pair<T, kHead>(m.first[owned.stage], m.second[owned.stage], maps.first, maps.second,
                        m.of_owned.acquire(owned), tile.first, tile.head, tile.batch, true);
    for (int j = tile.steps - 1; j >= 0; --j, at.next())
      copy_pair<T, kHead>(m.left[at.stage], m.right[at.stage], maps.left, maps.right,
                          m.of_steps.acquire(at), j * kStep, tile.head / n.shared(), tile.batch,
                          false);
  }
}

template <class T, int kHead>
__device__ void load_for_dkv(Shared<T, kHead>& m, const Maps& maps, const Sizes& n,
                             const Schedule& work) {
  Ring<Shared<T, kHead>::kOwned> owned;
  Ring<Shared<T, kHead>::kStages> at;
  for (int turn = 0; work.index(turn) < work.count(); ++turn, owned.next()) {
    const KeyTile tile(n, work, work.index(turn));
    copy_pair<T, kHead>(m.first[owned.stage], m.second[owned.stage], maps.first, maps.second,
                        m.of_owned.acquire(owned), tile.first, tile.kv_head, tile.batch, true);
    for (int shared = 0; shared < n.shared(); ++shared)
      for (int j = 0; j < tile.steps; ++j, at.next())
        copy_pair<T, kHead>(m.left[at.stage], m.right[at.stage], maps.left, maps.right,
                            m.of_steps.acquire(at), tile.start + j * kStep,
                            tile.kv_head * n.shared() + shared, tile.batch, false);
  }
}

/// One warp's part: what belongs to each query of a step.
template <class T, int kHead>
__device__ void load_statistics(Shared<T, kHead>& m, const BackwardProblem<T>& k,
                                const Schedule& work) {
  const Sizes& n = k.sizes;
  const int lane = threadIdx.x % kWarpSize;
  Ring<Shared<T, kHead>::kStages> at;
  for (int turn = 0; work.index(turn) < work.count(); ++turn) {
    const KeyTile tile(n, work, work.index(turn));
    for (int shared = 0; shared < n.shared(); ++shared)
      for (int j = 0; j < tile.steps; ++j, at.next()) {
        SharedBarrier& done = m.of_steps.acquire(at);
        const int first = tile.start + j * kStep;
        const int64_t row0 = n.row(tile.batch, tile.kv_head * n.shared() + shared, first);
        for (int t = lane; t < kStep; t += kWarpSize) {
          const bool inside = first + t < n.queries;
          m.lse_log2[at.stage][t] = inside ? k.lse[row0 + t] * float(kLog2E) : INFINITY;
          m.delta[at.stage][t] = inside ? k.delta[row0 + t] : 0;
        }
        __syncwarp();
        if (lane == 0) done.arrive();
      }
  }
}

/// Σ dy ⊙ y of row t, by four lanes.
template <class T>
__device__ float row_delta(const BackwardProblem<T>& k, int batch, int head, int t) {
  constexpr int kWide = kWidest<T>;
  const T *dy = k.dy.template at<const T>(batch, head, t),
          *y = k.y.template at<const T>(batch, head, t);
  float sum = 0;
  for (int c = threadIdx.x % 4 * kWide; c < k.sizes.dim; c += 4 * kWide) {
    const auto a = norma::load<kWide>(dy + c), b = norma::load<kWide>(y + c);
#pragma unroll
    for (int e = 0; e < kWide; ++e) sum += convert<float>(a[e]) * convert<float>(b[e]);
  }
  return sum;
}

template <class T, int kHead>
__device__ void compute_dq(Shared<T, kHead>& m, const BackwardProblem<T>& k, const Schedule& work) {
  const Sizes& n = k.sizes;
  Ring<Shared<T, kHead>::kOwned> owned;
  Ring<Shared<T, kHead>::kStages> at, last;
  for (int turn = 0; work.index(turn) < work.count(); ++turn, owned.next()) {
    const QueryTile tile(n, work, work.index(turn));
    const int64_t row0 = n.row(tile.batch, tile.head, tile.first);
    const int seen_by_all = n.end_of_keys(tile.first + group_row() + 1);
    float lse_log2[2], delta[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = tile_row(i);
      const bool inside = tile.first + t < n.queries;
      delta[i] = warp_sum<4>(inside ? row_delta(k, tile.batch, tile.head, tile.first + t) : 0);
      lse_log2[i] = inside ? k.lse[row0 + t] * float(kLog2E) : 0;
      if (inside && threadIdx.x % 4 == 0) k.delta[row0 + t] = delta[i];
    }
    float p[kScores], dp[kScores], dq[kHead / 2];
    uint32_t ds[kStep / 16][4];
    m.of_owned.wait(owned);
    for (int j = tile.steps - 1; j >= 0; --j, at.next()) {
      const int first_key = j * kStep;
      const bool begun = j < tile.steps - 1;
      m.of_steps.wait(at);
      keep_registers(p);
      keep_registers(dp);
      wgmma_begin();
      multiply_rows<T, kStep, kHead>(p, m.first[owned.stage], kTileRows, group_row(),
                                     m.left[at.stage]);
      wgmma_commit();
      multiply_rows<T, kStep, kHead>(dp, m.second[owned.stage], kTileRows, group_row(),
                                     m.right[at.stage]);
      wgmma_commit();
      uint32_t kept = ~0u;
      if (k.dropout) kept = Lanes::kept(k.dropout, row0 - kLoaderRows, first_key);
      wgmma_wait<1>();  // the scores, and dq's product of the step before
      keep_registers(p);
      keep_registers(dq);
      if (begun) m.of_steps.release(last), last.next();
#pragma unroll
      for (int c = 0; c < kScores; ++c) p[c] = fast_exp2(p[c] * k.scale_log2 - lse_log2[c / 2 % 2]);
      if (first_key + kStep > seen_by_all) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int seen = n.end_of_keys(tile.first + tile_row(i) + 1) - first_key;
#pragma unroll
          for (int c = 0; c < kScores / 2; ++c)
            if (Lanes::col(c) >= seen) p[c / 2 * 4 + 2 * i + c % 2] = 0;
        }
      }
      wgmma_wait<0>();
      keep_registers(dp);
      if (k.dropout) {
#pragma unroll
        for (int c = 0; c < kScores; ++c)
          dp[c] = bit(kept, c / 2 % 2 * 16 + c / 4 * 2 + c % 2) ? dp[c] * k.rescale : 0;
      }
#pragma unroll
      for (int c = 0; c < kScores; ++c) p[c] *= dp[c] - delta[c / 2 % 2];
      to_operand<T, kStep>(ds, p);
#pragma unroll
      for (auto& four : ds) keep_registers(four);
      keep_registers(dq);
      wgmma_begin();
      add_product<T, kHead, kStep>(dq, ds, m.left[at.stage], begun);
      wgmma_commit();
    }
    m.of_owned.release(owned);
    wgmma_wait<0>();
    keep_registers(dq);
    m.of_steps.release(last), last.next();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = tile.first + tile_row(i);
      store_sums<T, kHead>(k.dq.template at<T>(tile.batch, tile.head, t), dq, i, k.scale, n.dim,
                           t < n.queries);
    }
  }
}

/// Rows are keys here, and columns queries.
template <class T, int kHead, bool kDropout>
__device__ void compute_dkv(Shared<T, kHead>& m, const BackwardProblem<T>& k,
                            const Schedule& work) {
  const Sizes& n = k.sizes;
  Ring<Shared<T, kHead>::kOwned> owned;
  Ring<Shared<T, kHead>::kStages> at, last;
  for (int turn = 0; work.index(turn) < work.count(); ++turn, owned.next()) {
    const KeyTile tile(n, work, work.index(turn));
    const int my_first = tile.first + group_row(), steps = n.shared() * tile.steps;
    float dk[kHead / 2], dv[kHead / 2];
    m.of_owned.wait(owned);
    for (int step = 0; step < steps; ++step, at.next()) {
      const int first = tile.start + step % tile.steps * kStep;
      const bool begun = step > 0;
      float p[kScores], dp[kScores];
      uint32_t operand[kStep / 16][4], ds[kStep / 16][4];
      m.of_steps.wait(at);
      wgmma_begin();
      multiply_rows<T, kStep, kHead>(p, m.first[owned.stage], kTileRows, group_row(),
                                     m.left[at.stage]);
      wgmma_commit();
      multiply_rows<T, kStep, kHead>(dp, m.second[owned.stage], kTileRows, group_row(),
                                     m.right[at.stage]);
      wgmma_commit();
      uint32_t kept = ~0u;
      if constexpr (kDropout) {
        const int head = tile.kv_head * n.shared() + step / tile.steps;
        kept = Lanes::kept_transposed(k.dropout, n.row(tile.batch, head, first),
                                      tile.first - kLoaderRows);
      }
      wgmma_wait<1>();  // the scores, and both sums' products of the step before
      keep_registers(p);
      keep_registers(dk);
      keep_registers(dv);
      if (begun) m.of_steps.release(last), last.next();
      const float *lse_log2 = m.lse_log2[at.stage], *delta = m.delta[at.stage];
#pragma unroll
      for (int c = 0; c < kStep / 8; ++c) {
        const auto lse = norma::load<2>(lse_log2 + Lanes::col(2 * c));
#pragma unroll
        for (int e = 0; e < 4; ++e)
          p[4 * c + e] = fast_exp2(p[4 * c + e] * k.scale_log2 - lse[e % 2]);
      }
      if (n.end_of_keys(first + 1) < my_first + 64) {
#pragma unroll
        for (int c = 0; c < kStep / 4; ++c) {
          const int seen = n.end_of_keys(first + Lanes::col(c) + 1) - tile.first;
#pragma unroll
          for (int i = 0; i < 2; ++i)
            if (tile_row(i) >= seen) p[c / 2 * 4 + 2 * i + c % 2] = 0;
        }
      }
      if constexpr (kDropout) {
        float left[kScores];
#pragma unroll
        for (int c = 0; c < kScores; ++c)
          left[c] = bit(kept, c / 2 % 2 * 16 + c / 4 * 2 + c % 2) ? p[c] : 0;
        to_operand<T, kStep>(operand, left);
      } else {
        to_operand<T, kStep>(operand, p);
      }
#pragma unroll
      for (auto& four : operand) keep_registers(four);
      wgmma_begin();
      add_product<T, kHead, kStep>(dv, operand, m.right[at.stage], begun);
      wgmma_commit();
      wgmma_wait<1>();
      keep_registers(dp);
      if constexpr (kDropout) {
#pragma unroll
        for (int c = 0; c < kScores; ++c)
          dp[c] = bit(kept, c / 2 % 2 * 16 + c / 4 * 2 + c % 2) ? dp[c] * k.rescale : 0;
      }
#pragma unroll
      for (int c = 0; c < kStep / 8; ++c) {
        const auto d = norma::load<2>(delta + Lanes::col(2 * c));
#pragma unroll
        for (int e = 0; e < 4; ++e) p[4 * c + e] *= dp[4 * c + e] - d[e % 2];
      }
      to_operand<T, kStep>(ds, p);
#pragma unroll
      for (auto& four : ds) keep_registers(four);
      wgmma_begin();
      add_product<T, kHead, kStep>(dk, ds, m.left[at.stage], begun);
      wgmma_commit();
      if constexpr (kHead == 128) wgmma_wait<0>();  // operands give their registers to scores
    }
    m.of_owned.release(owned);
    wgmma_wait<0>();
    keep_registers(dk);
    keep_registers(dv);
    if (steps > 0) m.of_steps.release(last), last.next();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int s = tile.first + tile_row(i);
      const bool inside = s < n.keys;
      store_sums<T, kHead>(k.dk.template at<T>(tile.batch, tile.kv_head, s), dk, i, k.scale, n.dim,
                           inside);
      store_sums<T, kHead>(k.dv.template at<T>(tile.batch, tile.kv_head, s), dv, i, k.rescale,
                           n.dim, inside);
    }
  }
}

template <class T, int kHead>
__global__ void __launch_bounds__(kHopperThreads, 1)
    attention_dq_hopper_kernel(const __grid_constant__ Maps maps,
                               const __grid_constant__ BackwardProblem<T> k,
                               const __grid_constant__ Schedule work) {
  if constexpr (kHasWgmma) {
    auto& m = shared_memory<Shared<T, kHead>>();
    if (threadIdx.x == 0) {
      m.of_owned.init(1), m.of_steps.init(1);
      publish_barriers();
    }
    __syncthreads();
    if (threadIdx.x < kGroup) {
      give_registers<kLoaderRegisters>();
      if (threadIdx.x == 0) load_for_dq<T, kHead>(m, maps, k.sizes, work);
    } else {
      take_registers<kComputeRegisters>();
      compute_dq<T, kHead>(m, k, work);
    }
  } else {
    __trap();
  }
}

template <class T, int kHead, bool kDropout>
__global__ void __launch_bounds__(kHopperThreads, 1)
    attention_dkv_hopper_kernel(const __grid_constant__ Maps maps,
                                const __grid_constant__ BackwardProblem<T> k,
                                const __grid_constant__ Schedule work) {
  if constexpr (kHasWgmma) {
    auto& m = shared_memory<Shared<T, kHead>>();
    if (threadIdx.x == 0) {
      m.of_owned.init(1), m.of_steps.init(2);  // the copy engine's thread and a warp's
      publish_barriers();
    }
    __syncthreads();
    if (threadIdx.x < kGroup) {
      give_registers<kLoaderRegisters>();
      if (threadIdx.x == 0) load_for_dkv<T, kHead>(m, maps, k.sizes, work);
      if (threadIdx.x / kWarpSize == 1) load_statistics<T, kHead>(m, k, work);
    } else {
      take_registers<kComputeRegisters>();
      compute_dkv<T, kHead, kDropout>(m, k, work);
    }
  } else {
    __trap();
  }
}

template <class T, int kHead>
void launch_backward(const Cuda& on, const AttentionBackwardArgs& a) {
  const int64_t bytes = kHead * int64_t{2 * sizeof(T)};
  const BackwardProblem<T> k(a);
  const auto start = [&](auto* kernel, const Maps& maps, const Schedule& work) {
    const int64_t blocks = std::min<int64_t>(int64_t{work.heads} * work.tiles,
                                             detail::properties().multiProcessorCount);
    launch(on,
           {.grid = dim3(static_cast<unsigned>(blocks)),
            .block = dim3(kHopperThreads),
            .shared = kSharedBytes<Shared<T, kHead>>},
           kernel, maps, k, work);
  };
  start(attention_dq_hopper_kernel<T, kHead>,
        {map_of(a.q, kTileRows), map_of(a.dy, kTileRows), map_of(a.k, kStep), map_of(a.v, kStep)},
        schedule(a.q.shape[0] * a.q.shape[1], a.q.shape[2], a.k.shape[2] * bytes));
  start(k.dropout ? attention_dkv_hopper_kernel<T, kHead, true>
                  : attention_dkv_hopper_kernel<T, kHead, false>,
        {map_of(a.k, kTileRows), map_of(a.v, kTileRows), map_of(a.q, kStep), map_of(a.dy, kStep)},
        schedule(a.k.shape[0] * a.k.shape[1], a.k.shape[2],
                 a.q.shape[2] * bytes * (a.q.shape[1] / a.k.shape[1])));
}

}  // namespace

bool backward_hopper(const Cuda& on, const AttentionBackwardArgs& a) {
  if (!fits_hopper(a.settings, a.q, a.k, a.dy, a.v, a.y, a.dq, a.dk, a.dv)) return false;
  const auto run = [&]<class T>() {
    if (a.q.shape[3] <= 64)
      launch_backward<T, 64>(on, a);
    else
      launch_backward<T, 128>(on, a);
  };
  if (a.q.dtype == bfloat16)
    run.template operator()<BFloat16>();
  else
    run.template operator()<Float16>();
  return true;
}

}  // namespace norma::attention
