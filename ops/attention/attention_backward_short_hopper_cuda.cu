#include "norma/ops/attention/hopper.cuh"
#include "norma/ops/attention/hopper.h"

// Rows of up to 256 causal tokens: a block has all of a head, reads each tensor once and needs the
// five products alone. Two kernels that pass by each other's tensors
// (attention_backward_hopper_cuda.cu) read twice as much: 85 µs for 384 heads of 256 × 64 on an
// H100, where this takes 58.
//
// Step i takes 64 queries and the keys that come with them, i + 1 blocks of 64, so that a head is
// asked for evenly and the next one's tensors arrive meanwhile. The first computing warpgroup has
// blocks 0 and 2 of the keys, the second 1 and 3, with dk and dv in registers for the whole head;
// dS goes by shared memory to the second, which has fewer pairs and makes dq.

namespace norma::attention {
namespace {

constexpr int kBlock = 64, kMostBlocks = 4, kHead = 64, kGroups = 2;
constexpr int kKeySlots = 7, kQuerySlots = 3;
constexpr int kLoaderRegisters = 40, kComputeRegisters = 232;
[[maybe_unused]] constexpr int kScores = kBlock / 2;  // of a thread
// Barriers by number: dS is written, dS was read, and one of the second warpgroup's own.
[[maybe_unused]] constexpr int kScoresFull = 1, kScoresFree = 2, kOwn = 3;

template <class T>
using BlockOf = T[kBlock * kHead];

template <class T>
struct ShortShared {
  BlockOf<T> keys[kKeySlots][2];       // k, v
  BlockOf<T> queries[kQuerySlots][3];  // q, dy, y
  BlockOf<T> ds[kMostBlocks];          // of one block of queries; rows are keys
  float lse_log2[kQuerySlots][kBlock], delta[kQuerySlots][kBlock];
  SharedBarrier statistics[kQuerySlots];
  Barriers<kKeySlots> of_keys;
  Barriers<kQuerySlots> of_queries;
};
struct ShortMaps {
  CUtensorMap k, v, q, dy, y;
};

/// The heads of a block, one after the other.
struct Head {
  int index = blockIdx.x, batch = 0, head = 0;

  __device__ bool take(const Sizes& n) {
    batch = index / n.heads, head = index % n.heads;
    return index < n.batches * n.heads;
  }
  __device__ void next() { index += gridDim.x; }
  __device__ bool is_last(const Sizes& n) const {
    return index + static_cast<int>(gridDim.x) >= n.batches * n.heads;
  }
};

template <class T>
__device__ void load_heads(ShortShared<T>& m, const ShortMaps& maps, const Sizes& n, int blocks) {
  Ring<kKeySlots> keys;
  Ring<kQuerySlots> at;
  for (Head h; h.take(n); h.next())
    for (int i = 0; i < blocks; ++i, keys.next(), at.next()) {
      SharedBarrier& of_keys = m.of_keys.acquire(keys);
      of_keys.expect(sizeof m.keys[0]);
      copy_box(m.keys[keys.stage][0], maps.k, of_keys, 0, i * kBlock, h.head, h.batch);
      copy_box(m.keys[keys.stage][1], maps.v, of_keys, 0, i * kBlock, h.head, h.batch);
      SharedBarrier& of_queries = m.of_queries.acquire(at);
      of_queries.expect(sizeof m.queries[0]);
      copy_box(m.queries[at.stage][0], maps.q, of_queries, 0, i * kBlock, h.head, h.batch);
      copy_box(m.queries[at.stage][1], maps.dy, of_queries, 0, i * kBlock, h.head, h.batch);
      copy_box(m.queries[at.stage][2], maps.y, of_queries, 0, i * kBlock, h.head, h.batch);
    }
}

/// Σ dy ⊙ y of a row of two tiles in the copy engine's swizzle.
template <class T>
__device__ __forceinline__ float dot_rows(const T* dy, const T* y, int row) {
  float even = 0, odd = 0;
#pragma unroll 2
  for (int piece = 0; piece < kHead / 8; ++piece) {
    const int at = row * kHead + (piece ^ row % 8) * 8;
    const auto a = load<4>(reinterpret_cast<const uint32_t*>(dy + at));
    const auto b = load<4>(reinterpret_cast<const uint32_t*>(y + at));
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float2 u = unpack_pair<T>(a[w]), v = unpack_pair<T>(b[w]);
      even += u.x * v.x, odd += u.y * v.y;
    }
  }
  return even + odd;
}

/// One warp's part: lse in the base of 2, and Σ dy ⊙ y, of the queries of each step.
template <class T>
__device__ void make_statistics(ShortShared<T>& m, const BackwardProblem<T>& k, int blocks) {
  constexpr int kRows = kBlock / kWarpSize;
  const Sizes& n = k.sizes;
  const int lane = threadIdx.x % kWarpSize;
  Ring<kQuerySlots> at;
  for (Head h; h.take(n); h.next())
    for (int i = 0; i < blocks; ++i, at.next()) {
      float lse[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {  // beyond the end: probability 0
        const int t = i * kBlock + r * kWarpSize + lane;
        lse[r] = t < n.queries ? k.lse[n.row(h.batch, h.head, t)] * float(kLog2E) : INFINITY;
      }
      m.of_queries.wait(at);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int row = r * kWarpSize + lane;
        m.lse_log2[at.stage][row] = lse[r];
        m.delta[at.stage][row] = dot_rows(m.queries[at.stage][1], m.queries[at.stage][2], row);
      }
      __syncwarp();
      if (lane == 0) m.statistics[at.stage].arrive();
      m.of_queries.release(at);
    }
}

/// This thread among its warpgroup's 64 rows.
struct Thread {
  int group = group_of_block() - 1;

  __device__ static int lane() { return threadIdx.x % kWarpSize; }
  __device__ static int row0() { return threadIdx.x % kGroup / kWarpSize * 16; }
  __device__ static int row(int i) { return row0() + lane() / 4 + 8 * i; }
};

/// A warp's 16 rows of dS, as operands hold them, to a tile in the copy engine's swizzle.
template <class T>
__device__ __forceinline__ void put_operand(T* tile, const uint32_t (&a)[kBlock / 16][4],
                                            const Thread& me) {
  const int row = me.row0() + me.lane() % 16;
#pragma unroll
  for (int c = 0; c < kBlock / 16; ++c)
    store_matrices(tile + row * kBlock + ((2 * c + me.lane() / 16) ^ row % 8) * 8, a[c]);
}

/// What a block of 64 keys gets from the queries so far.
struct KeySums {
  float dk[kHead / 2], dv[kHead / 2];
};

/// Adds what block j of the keys gets from block i of the queries, and leaves their dS. One product
/// after the other: the sums leave no registers for two, and the other warpgroup fills the gaps.
/// `wait_for_place`: whoever reads the dS before has to be waited for.
template <class T, bool kDropout>
__device__ __forceinline__ void add_pair(KeySums& sums, ShortShared<T>& m,
                                         const BackwardProblem<T>& k, const Head& h, int i, int j,
                                         const T* keys, const T* values, int stage,
                                         const Thread& me, bool wait_for_place) {
  const T *q = m.queries[stage][0], *dy = m.queries[stage][1];
  float p[kScores], dp[kScores];
  uint32_t operand[kBlock / 16][4];
  uint32_t kept = ~0u;
  if constexpr (kDropout)
    kept = Lanes::kept_transposed(k.dropout, k.sizes.row(h.batch, h.head, i * kBlock),
                                  (j - me.group - 1) * kBlock);
  const auto is_kept = [&](int c) {
    return !kDropout || bit(kept, c / 2 % 2 * 16 + c / 4 * 2 + c % 2);
  };
  keep_registers(p);
  wgmma_begin();
  multiply_rows<T, kBlock, kHead>(p, keys, kBlock, 0, q);
  wgmma_commit();
  wgmma_wait<0>();
  keep_registers(p);
#pragma unroll
  for (int c = 0; c < kBlock / 8; ++c) {
    const auto lse = load<2>(m.lse_log2[stage] + Lanes::col(2 * c));
#pragma unroll
    for (int e = 0; e < 4; ++e) p[4 * c + e] = exp2_fast(p[4 * c + e] * k.scale_log2 - lse[e % 2]);
  }
  if (i == j) {
#pragma unroll
    for (int c = 0; c < kScores; ++c)
      if (me.row(c / 2 % 2) > Lanes::col(c / 4 * 2 + c % 2)) p[c] = 0;
  }
  if constexpr (kDropout) {
    float left[kScores];
#pragma unroll
    for (int c = 0; c < kScores; ++c) left[c] = is_kept(c) ? p[c] : 0;
    to_operand<T, kBlock>(operand, left);
  } else {
    to_operand<T, kBlock>(operand, p);
  }
  keep_registers(operand);
  keep_registers(sums.dv);
  wgmma_begin();
  add_product<T, kHead, kBlock>(sums.dv, operand, dy, i > j);
  wgmma_commit();
  wgmma_wait<0>();
  keep_registers(sums.dv);
  keep_registers(operand);

  keep_registers(dp);
  wgmma_begin();
  multiply_rows<T, kBlock, kHead>(dp, values, kBlock, 0, dy);
  wgmma_commit();
  wgmma_wait<0>();
  keep_registers(dp);
#pragma unroll
  for (int c = 0; c < kBlock / 8; ++c) {
    const auto delta = load<2>(m.delta[stage] + Lanes::col(2 * c));
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if constexpr (kDropout) dp[4 * c + e] = is_kept(4 * c + e) ? dp[4 * c + e] * k.rescale : 0;
      p[4 * c + e] *= dp[4 * c + e] - delta[e % 2];
    }
  }
  to_operand<T, kBlock>(operand, p);
  keep_registers(operand);
  keep_registers(sums.dk);
  wgmma_begin();
  add_product<T, kHead, kBlock>(sums.dk, operand, q, i > j);
  wgmma_commit();
  if (wait_for_place) named_sync(kScoresFree, kGroups * kGroup);
  put_operand(m.ds[j], operand, me);
  wgmma_wait<0>();
  keep_registers(sums.dk);
  keep_registers(operand);
}

/// What block i of the queries gets from all keys that it sees.
template <class T>
__device__ __forceinline__ void multiply_queries(float (&dq)[kHead / 2], ShortShared<T>& m,
                                                 const Ring<kKeySlots>& keys, int i) {
  Ring<kKeySlots> at = keys;
  at.skip(i);
  m.of_keys.wait(at);  // those before came with steps before
  at = keys;
  keep_registers(dq);
  wgmma_begin();
#pragma unroll 1
  for (int j = 0; j <= i; ++j, at.next())
#pragma unroll
    for (int key = 0; key < kBlock; key += 16)
      wgmma_rows<T, kHead, true, true>(dq, columns_of(m.ds[j], kBlock, key),
                                       columns_of(m.keys[at.stage][0], kBlock, key), j + key > 0);
  wgmma_commit();
  wgmma_wait<0>();
  keep_registers(dq);
}

template <class T>
__device__ __forceinline__ void store_block(const Heads& to, const float (&sums)[kHead / 2],
                                            const Sizes& n, const Head& h, int block,
                                            const Thread& me, float factor) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int t = block * kBlock + me.row(r);
    store_sums<T, kHead>(to.at<T>(h.batch, h.head, t), sums, r, factor, n.dim, t < n.queries);
  }
}

template <class T, bool kDropout>
__device__ void compute(ShortShared<T>& m, const BackwardProblem<T>& k, int blocks) {
  const Thread me;
  const Sizes& n = k.sizes;
  Ring<kKeySlots> keys;
  Ring<kQuerySlots> at;
  if (me.group == 1) named_arrive(kScoresFree, kGroups * kGroup);
  for (Head h; h.take(n); h.next()) {
    KeySums sums[kMostBlocks / kGroups];
#pragma unroll 1
    for (int i = 0; i < blocks; ++i, at.next()) {
      m.of_queries.wait(at);
      m.statistics[at.stage].wait(at.parity);
#pragma unroll
      for (int slot = 0; slot < kMostBlocks / kGroups; ++slot) {
        const int j = me.group + kGroups * slot;
        if (j > i) break;
        Ring<kKeySlots> mine = keys;
        mine.skip(j);
        m.of_keys.wait(mine);
        add_pair<T, kDropout>(sums[slot], m, k, h, i, j, m.keys[mine.stage][0],
                              m.keys[mine.stage][1], at.stage, me, me.group == 0 && slot == 0);
      }
      copies_follow_writes();
      if (me.group == 0) {
        named_arrive(kScoresFull, kGroups * kGroup);
      } else {
        float dq[kHead / 2];
        named_sync(kScoresFull, kGroups * kGroup);
        multiply_queries(dq, m, keys, i);
        if (i + 1 < blocks || !h.is_last(n)) named_arrive(kScoresFree, kGroups * kGroup);
        named_sync(kOwn, kGroup);
        store_block<T>(k.dq, dq, n, h, i, me, k.scale);
      }
      m.of_queries.release(at);
    }
#pragma unroll
    for (int slot = 0; slot < kMostBlocks / kGroups; ++slot) {
      const int j = me.group + kGroups * slot;
      if (j >= blocks) break;
      store_block<T>(k.dk, sums[slot].dk, n, h, j, me, k.scale);
      store_block<T>(k.dv, sums[slot].dv, n, h, j, me, k.rescale);
    }
    for (int j = 0; j < blocks; ++j, keys.next()) m.of_keys.release(keys);
  }
}

template <class T, bool kDropout>
__global__ void __launch_bounds__(kHopperThreads, 1)
    attention_backward_short_kernel(const __grid_constant__ ShortMaps maps,
                                    const __grid_constant__ BackwardProblem<T> k, int blocks) {
  if constexpr (kHasWgmma) {
    auto& m = shared_memory<ShortShared<T>>();
    if (threadIdx.x == 0) {
      m.of_keys.init(1);
      m.of_queries.init(1, kComputingWarps + 1);  // and the warp of the statistics
      for (SharedBarrier& made : m.statistics) made.init(1);
      publish_barriers();
    }
    __syncthreads();
    wait_for_previous_kernel();
    if (threadIdx.x < kGroup) {
      give_registers<kLoaderRegisters>();
      if (threadIdx.x == 0) load_heads(m, maps, k.sizes, blocks);
      if (threadIdx.x / kWarpSize == 1) make_statistics(m, k, blocks);
    } else {
      take_registers<kComputeRegisters>();
      compute<T, kDropout>(m, k, blocks);
    }
  } else {
    __trap();
  }
}

template <class T>
void launch_backward(const Cuda& on, const AttentionBackwardArgs& a) {
  const BackwardProblem<T> k(a);
  const ShortMaps maps{map_of(a.k, kBlock), map_of(a.v, kBlock), map_of(a.q, kBlock),
                       map_of(a.dy, kBlock), map_of(a.y, kBlock)};
  const int heads = k.sizes.batches * k.sizes.heads;
  launch(on,
         {.grid = dim3(
              static_cast<unsigned>(std::min(heads, detail::properties().multiProcessorCount))),
          .block = dim3(kHopperThreads),
          .shared = kSharedBytes<ShortShared<T>>,
          .overlap = true},
         k.dropout ? attention_backward_short_kernel<T, true>
                   : attention_backward_short_kernel<T, false>,
         maps, k, ceil_div(k.sizes.queries, kBlock));
}

}  // namespace

bool backward_short(const Cuda& on, const AttentionBackwardArgs& a) {
  if (!a.settings.causal || a.q.shape[3] > kHead || a.q.shape[1] != a.k.shape[1] ||
      a.q.shape[2] != a.k.shape[2] || a.q.shape[2] > kMostBlocks * kBlock ||
      !fits_hopper(a.settings, a.q, a.k, a.dy, a.v, a.y, a.dq, a.dk, a.dv))
    return false;
  if (a.q.dtype == bfloat16)
    launch_backward<BFloat16>(on, a);
  else
    launch_backward<Float16>(on, a);
  return true;
}

}  // namespace norma::attention
