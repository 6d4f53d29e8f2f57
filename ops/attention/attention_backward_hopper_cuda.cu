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

template <class T, int kHead, int kTiles>
struct Shared {
  static constexpr int kOwn = kHead == 64 ? 2 : 1, kStages = kHead == 64 ? 6 : 6 - kTiles;
  T own[kOwn][kTiles][kTileRows * kHead];                         // q, dy and y, or k and v
  T left[kStages][kStep * kHead], right[kStages][kStep * kHead];  // k and v, or q and dy
  Barriers<kOwn> of_own;
  Barriers<kStages> of_steps;
};
template <class T, int kHead>
using SharedOfDq = Shared<T, kHead, 3>;
template <class T, int kHead>
struct SharedOfDkv : Shared<T, kHead, 2> {
  float lse_log2[SharedOfDkv::kStages][kStep], delta[SharedOfDkv::kStages][kStep];
};

template <int kTiles>
struct Maps {
  CUtensorMap own[kTiles], left, right;
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

template <class T, int kHead, int kTiles, int kOwn>
__device__ __forceinline__ void copy_own(Shared<T, kHead, kTiles>& m, const Maps<kTiles>& maps,
                                         Ring<kOwn>& own, int first, int head, int batch) {
  SharedBarrier& done = m.of_own.acquire(own);
  done.expect(sizeof m.own[0]);
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
    copy_rows<kTileRows, kHead>(m.own[own.stage][i], maps.own[i], done, first, head, batch);
  own.next();
}
template <class T, int kHead, int kTiles, int kStages>
__device__ __forceinline__ void copy_step(Shared<T, kHead, kTiles>& m, const Maps<kTiles>& maps,
                                          Ring<kStages>& at, int first, int head, int batch) {
  SharedBarrier& done = m.of_steps.acquire(at);
  done.expect(2 * sizeof m.left[0]);
  copy_rows<kStep, kHead>(m.left[at.stage], maps.left, done, first, head, batch);
  copy_rows<kStep, kHead>(m.right[at.stage], maps.right, done, first, head, batch);
  at.next();
}

template <class T, int kHead>
__device__ void load_for_dq(SharedOfDq<T, kHead>& m, const Maps<3>& maps, const Sizes& n,
                            const Schedule& work) {
  Ring<SharedOfDq<T, kHead>::kOwn> own;
  Ring<SharedOfDq<T, kHead>::kStages> at;
  for (int turn = 0; work.index(turn) < work.count(); ++turn) {
    const QueryTile tile(n, work, work.index(turn));
    copy_own(m, maps, own, tile.first, tile.head, tile.batch);
    for (int j = tile.steps - 1; j >= 0; --j)
      copy_step(m, maps, at, j * kStep, tile.head / n.shared(), tile.batch);
  }
}

template <class T, int kHead>
__device__ void load_for_dkv(SharedOfDkv<T, kHead>& m, const Maps<2>& maps, const Sizes& n,
                             const Schedule& work) {
  Ring<SharedOfDkv<T, kHead>::kOwn> own;
  Ring<SharedOfDkv<T, kHead>::kStages> at;
  for (int turn = 0; work.index(turn) < work.count(); ++turn) {
    const KeyTile tile(n, work, work.index(turn));
    copy_own(m, maps, own, tile.first, tile.kv_head, tile.batch);
    for (int shared = 0; shared < n.shared(); ++shared)
      for (int j = 0; j < tile.steps; ++j)
        copy_step(m, maps, at, tile.start + j * kStep, tile.kv_head * n.shared() + shared,
                  tile.batch);
  }
}

/// One warp's part: what belongs to each query of a step.
template <class T, int kHead>
__device__ void load_statistics(SharedOfDkv<T, kHead>& m, const BackwardProblem<T>& k,
                                const Schedule& work) {
  const Sizes& n = k.sizes;
  const int lane = threadIdx.x % kWarpSize;
  Ring<SharedOfDkv<T, kHead>::kStages> at;
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

/// Σ dy ⊙ y of a thread's two rows.
template <class T, int kHead>
__device__ void dot_rows(float (&delta)[2], const T* dy, const T* y) {
  delta[0] = delta[1] = 0;
#pragma unroll
  for (int c = 0; c < kHead; c += 16) {
    uint32_t a[4], b[4];
    load_operand(a, dy, c);
    load_operand(b, y, c);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float2 u = unpack_pair<T>(a[r]), v = unpack_pair<T>(b[r]);
      delta[r % 2] += u.x * v.x + u.y * v.y;
    }
  }
  delta[0] = warp_sum<4>(delta[0]), delta[1] = warp_sum<4>(delta[1]);
}

template <class T, int kHead>
__device__ void compute_dq(SharedOfDq<T, kHead>& m, const BackwardProblem<T>& k,
                           const Schedule& work) {
  const Sizes& n = k.sizes;
  Ring<SharedOfDq<T, kHead>::kOwn> own;
  Ring<SharedOfDq<T, kHead>::kStages> at, last;
  float next_lse[2];
  const auto fetch_lse = [&](int turn) {  // a tile ahead: nobody waits for it
    if (work.index(turn) >= work.count()) return;
    const QueryTile tile(n, work, work.index(turn));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = tile.first + tile_row(i);
      next_lse[i] = t < n.queries ? k.lse[n.row(tile.batch, tile.head, t)] : 0;
    }
  };
  fetch_lse(0);
  for (int turn = 0; work.index(turn) < work.count(); ++turn) {
    const QueryTile tile(n, work, work.index(turn));
    const int64_t row0 = n.row(tile.batch, tile.head, tile.first);
    const int seen_by_all = n.end_of_keys(tile.first + group_row() + 1);
    const float lse_log2[2] = {next_lse[0] * float(kLog2E), next_lse[1] * float(kLog2E)};
    fetch_lse(turn + 1);
    float delta[2], p[kScores], dp[kScores], dq[kHead / 2];
    uint32_t ds[kStep / 16][4];
    m.of_own.wait(own);
    const T *q = m.own[own.stage][0], *dy = m.own[own.stage][1];
    dot_rows<T, kHead>(delta, dy, m.own[own.stage][2]);
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (tile.first + tile_row(i) < n.queries && threadIdx.x % 4 == 0)
        k.delta[row0 + tile_row(i)] = delta[i];
    for (int j = tile.steps - 1; j >= 0; --j, at.next()) {
      const int first_key = j * kStep;
      const bool begun = j < tile.steps - 1;
      m.of_steps.wait(at);
      keep_registers(p);
      keep_registers(dp);
      wgmma_begin();
      multiply_rows<T, kStep, kHead>(p, q, kTileRows, group_row(), m.left[at.stage]);
      wgmma_commit();
      multiply_rows<T, kStep, kHead>(dp, dy, kTileRows, group_row(), m.right[at.stage]);
      wgmma_commit();
      uint32_t kept = ~0u;
      if (k.dropout) kept = Lanes::kept(k.dropout, row0 - kLoaderRows, first_key);
      wgmma_wait<1>();  // the scores, and dq's product of the step before
      keep_registers(p);
      keep_registers(dq);
      keep_registers(ds);
      if (begun) m.of_steps.release(last), last.next();
#pragma unroll
      for (int c = 0; c < kScores; ++c) p[c] = exp2_fast(p[c] * k.scale_log2 - lse_log2[c / 2 % 2]);
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
      keep_registers(ds);
      keep_registers(dq);
      wgmma_begin();
      add_product<T, kHead, kStep>(dq, ds, m.left[at.stage], begun);
      wgmma_commit();
    }
    m.of_own.release(own), own.next();
    wgmma_wait<0>();
    keep_registers(dq);
    keep_registers(ds);
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
__device__ void compute_dkv(SharedOfDkv<T, kHead>& m, const BackwardProblem<T>& k,
                            const Schedule& work) {
  const Sizes& n = k.sizes;
  Ring<SharedOfDkv<T, kHead>::kOwn> own;
  Ring<SharedOfDkv<T, kHead>::kStages> at, last;
  for (int turn = 0; work.index(turn) < work.count(); ++turn) {
    const KeyTile tile(n, work, work.index(turn));
    const int my_first = tile.first + group_row(), steps = n.shared() * tile.steps;
    float dk[kHead / 2], dv[kHead / 2];
    uint32_t operand[kStep / 16][4], ds[kStep / 16][4];  // of the products for dv and dk
    m.of_own.wait(own);
    const T *keys = m.own[own.stage][0], *values = m.own[own.stage][1];
    for (int step = 0; step < steps; ++step, at.next()) {
      const int first = tile.start + step % tile.steps * kStep;
      const bool begun = step > 0;
      float p[kScores], dp[kScores];
      m.of_steps.wait(at);
      wgmma_begin();
      multiply_rows<T, kStep, kHead>(p, keys, kTileRows, group_row(), m.left[at.stage]);
      wgmma_commit();
      multiply_rows<T, kStep, kHead>(dp, values, kTileRows, group_row(), m.right[at.stage]);
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
      if constexpr (kHead == 64) {
        keep_registers(operand);
        keep_registers(ds);
      }
      if (begun) m.of_steps.release(last), last.next();
      const float *lse_log2 = m.lse_log2[at.stage], *delta = m.delta[at.stage];
#pragma unroll
      for (int c = 0; c < kStep / 8; ++c) {
        const auto lse = norma::load<2>(lse_log2 + Lanes::col(2 * c));
#pragma unroll
        for (int e = 0; e < 4; ++e)
          p[4 * c + e] = exp2_fast(p[4 * c + e] * k.scale_log2 - lse[e % 2]);
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
      keep_registers(operand);
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
      keep_registers(ds);
      wgmma_begin();
      add_product<T, kHead, kStep>(dk, ds, m.left[at.stage], begun);
      wgmma_commit();
      if constexpr (kHead == 128) {
        wgmma_wait<0>();  // the operands give their registers to scores
        keep_registers(operand);
        keep_registers(ds);
      }
    }
    m.of_own.release(own), own.next();
    wgmma_wait<0>();
    keep_registers(dk);
    keep_registers(dv);
    if constexpr (kHead == 64) {
      keep_registers(operand);
      keep_registers(ds);
    }
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
    attention_dq_hopper_kernel(const __grid_constant__ Maps<3> maps,
                               const __grid_constant__ BackwardProblem<T> k,
                               const __grid_constant__ Schedule work) {
  if constexpr (kHasWgmma) {
    auto& m = shared_memory<SharedOfDq<T, kHead>>();
    if (threadIdx.x == 0) {
      m.of_own.init(1), m.of_steps.init(1);
      publish_barriers();
    }
    __syncthreads();
    wait_for_previous_kernel();
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
    attention_dkv_hopper_kernel(const __grid_constant__ Maps<2> maps,
                                const __grid_constant__ BackwardProblem<T> k,
                                const __grid_constant__ Schedule work) {
  if constexpr (kHasWgmma) {
    auto& m = shared_memory<SharedOfDkv<T, kHead>>();
    if (threadIdx.x == 0) {
      m.of_own.init(1), m.of_steps.init(2);  // the copy engine's thread and a warp's
      publish_barriers();
    }
    __syncthreads();
    wait_for_previous_kernel();
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
  const auto start = [&]<class Shared>(auto* kernel, const auto& maps, const Schedule& work) {
    const int64_t blocks = std::min<int64_t>(int64_t{work.heads} * work.tiles,
                                             detail::properties().multiProcessorCount);
    launch(on,
           {.grid = dim3(static_cast<unsigned>(blocks)),
            .block = dim3(kHopperThreads),
            .shared = kSharedBytes<Shared>,
            .overlap = true},
           kernel, maps, k, work);
  };
  start.template operator()<SharedOfDq<T, kHead>>(
      attention_dq_hopper_kernel<T, kHead>,
      Maps<3>{{map_of(a.q, kTileRows), map_of(a.dy, kTileRows), map_of(a.y, kTileRows)},
              map_of(a.k, kStep),
              map_of(a.v, kStep)},
      schedule(a.q.shape[0] * a.q.shape[1], a.q.shape[2], a.k.shape[2] * bytes));
  start.template operator()<SharedOfDkv<T, kHead>>(
      k.dropout ? attention_dkv_hopper_kernel<T, kHead, true>
                : attention_dkv_hopper_kernel<T, kHead, false>,
      Maps<2>{{map_of(a.k, kTileRows), map_of(a.v, kTileRows)},
              map_of(a.q, kStep),
              map_of(a.dy, kStep)},
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
