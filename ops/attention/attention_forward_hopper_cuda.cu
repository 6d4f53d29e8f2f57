#include "norma/ops/attention/hopper.cuh"
#include "norma/ops/attention/hopper.h"

namespace norma::attention {
namespace {

constexpr int kLoaderRegisters = 24, kComputeRegisters = 240;
constexpr int kKeys = 128;  // of a stage

template <class T, int kHead>
struct Shared {
  static constexpr int kStages = kHead == 64 ? 4 : 2;
  T q[2][kTileRows * kHead], k[kStages][kKeys * kHead], v[kStages][kKeys * kHead];
  Barriers<2> of_q;
  Barriers<kStages> of_k, of_v;
};

struct Maps {
  CUtensorMap q, k, v;
};

/// The softmax of two rows so far.
struct Softmax {
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};  // sum: this lane's part

  /// Scores to probabilities; `factor` is what the sums so far shrink by. scale > 0.
  __device__ void step(float (&s)[kKeys / 2], float scale_log2, float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float now = largest[i];
#pragma unroll
      for (int c = 0; c < kKeys / 8; ++c)
        now = fmaxf(now, fmaxf(s[4 * c + 2 * i], s[4 * c + 2 * i + 1]));
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
      const float base = now == -INFINITY ? 0 : now * scale_log2;
      factor[i] = exp2_fast(largest[i] * scale_log2 - base);
      largest[i] = now;
      float more = 0;
#pragma unroll
      for (int c = 0; c < kKeys / 8; ++c)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& p = s[4 * c + 2 * i + e];
          p = exp2_fast(p * scale_log2 - base);
          more += p;
        }
      sum[i] = sum[i] * factor[i] + more;
    }
  }
};

/// Scores of keys that a row may not see.
__device__ __forceinline__ void mask(float (&s)[kKeys / 2], const Sizes& n, int first_row,
                                     int first_key) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int seen = n.end_of_keys(first_row + tile_row(i) + 1) - first_key;
#pragma unroll
    for (int j = 0; j < kKeys / 4; ++j)
      if (Lanes::col(j) >= seen) s[j / 2 * 4 + 2 * i + j % 2] = -INFINITY;
  }
}

/// `seen`: keys that this warpgroup sees.
__device__ __forceinline__ void drop(float (&p)[kKeys / 2], const DropoutMask& dropout,
                                     int64_t row0, int first_key, int seen) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (first_key + 64 * half >= seen) break;
    const uint32_t kept = Lanes::kept(dropout, row0 - kLoaderRows, first_key + 64 * half);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 16; ++j)
        if (!bit(kept, i * 16 + j)) p[32 * half + j / 2 * 4 + 2 * i + j % 2] = 0;
  }
}

struct Tile {
  int batch, head, first, key_tiles;
  __device__ Tile(const Sizes& n, const Schedule& work, int64_t index) {
    const auto item = work.item(index);
    batch = item.head / n.heads, head = item.head % n.heads;
    first = (work.tiles - 1 - item.level) * kTileRows;
    key_tiles = ceil_div(n.end_of_keys(min(first + kTileRows, n.queries)), kKeys);
  }
};

template <class T, int kHead>
__device__ void load(Shared<T, kHead>& m, const Maps& maps, const Sizes& n, const Schedule& work) {
  constexpr int kStages = Shared<T, kHead>::kStages, kBytes = kKeys * kHead * int(sizeof(T));
  static_assert(kKeys == kTileRows);
  Ring<2> q;
  Ring<kStages> kv;
  for (int turn = 0; work.index(turn) < work.count(); ++turn, q.next()) {
    const Tile tile(n, work, work.index(turn));
    const int kv_head = tile.head / n.shared();
    SharedBarrier& q_done = m.of_q.acquire(q);
    q_done.expect(kBytes);
    copy_rows<kTileRows, kHead>(m.q[q.stage], maps.q, q_done, tile.first, tile.head, tile.batch);
    for (int j = tile.key_tiles - 1; j >= 0; --j, kv.next()) {
      SharedBarrier& k_done = m.of_k.acquire(kv);
      k_done.expect(kBytes);
      copy_rows<kKeys, kHead>(m.k[kv.stage], maps.k, k_done, j * kKeys, kv_head, tile.batch);
      SharedBarrier& v_done = m.of_v.acquire(kv);
      v_done.expect(kBytes);
      copy_rows<kKeys, kHead>(m.v[kv.stage], maps.v, v_done, j * kKeys, kv_head, tile.batch);
    }
  }
}

template <class T, int kHead, bool kDropout>
__device__ void compute(Shared<T, kHead>& m, const ForwardProblem<T>& k, const Schedule& work) {
  const Sizes& n = k.sizes;
  const int group = static_cast<int>(threadIdx.x) / kGroup - 1;
  const int my_turn = 1 + group, their_turn = 2 - group;  // named barriers
  if (group == 1) named_arrive(their_turn, 2 * kGroup);
  Ring<2> q;
  Ring<Shared<T, kHead>::kStages> of_k, of_v;
  for (int turn = 0; work.index(turn) < work.count(); ++turn, q.next()) {
    const Tile tile(n, work, work.index(turn));
    const int64_t row0 = n.row(tile.batch, tile.head, tile.first);
    const int seen_by_all = n.end_of_keys(tile.first + group_row() + 1);
    float s[kKeys / 2], y[kHead / 2], factor[2];
    uint32_t p[kKeys / 16][4];
    Softmax softmax;
    const auto finish_scores = [&](int j) {
      const int first_key = j * kKeys;
      if (first_key + kKeys > seen_by_all) mask(s, n, tile.first, first_key);
      softmax.step(s, k.scale_log2, factor);
      if constexpr (kDropout)
        drop(s, k.dropout, row0, first_key, n.end_of_keys(tile.first + group_row() + 64));
    };

    m.of_q.wait(q);
    m.of_k.wait(of_k);
    wgmma_begin();
    multiply_rows<T, kKeys, kHead>(s, m.q[q.stage], kTileRows, group_row(), m.k[of_k.stage]);
    wgmma_commit();
    wgmma_wait<0>();
    keep_registers(s);
    m.of_k.release(of_k), of_k.next();
    finish_scores(tile.key_tiles - 1);
    to_operand<T, kKeys>(p, s);
#pragma unroll
    for (float& v : y) v = 0;

    for (int j = tile.key_tiles - 2; j >= 0; --j) {
      m.of_k.wait(of_k);
      named_sync(my_turn, 2 * kGroup);
      keep_registers(s);
      keep_registers(y);
      wgmma_begin();
      multiply_rows<T, kKeys, kHead>(s, m.q[q.stage], kTileRows, group_row(), m.k[of_k.stage]);
      wgmma_commit();
      m.of_v.wait(of_v);
      add_product<T, kHead, kKeys>(y, p, m.v[of_v.stage]);
      wgmma_commit();
      named_arrive(their_turn, 2 * kGroup);
      wgmma_wait<1>();
      keep_registers(s);
      m.of_k.release(of_k), of_k.next();
      finish_scores(j);  // under the product with the values
      wgmma_wait<0>();
      keep_registers(y);
      keep_registers(p);
      m.of_v.release(of_v), of_v.next();
#pragma unroll
      for (int c = 0; c < kHead / 2; ++c) y[c] *= factor[c / 2 % 2];
      to_operand<T, kKeys>(p, s);
    }
    m.of_q.release(q);
    m.of_v.wait(of_v);
    keep_registers(y);
    wgmma_begin();
    add_product<T, kHead, kKeys>(y, p, m.v[of_v.stage]);
    wgmma_commit();
    wgmma_wait<0>();
    keep_registers(y);
    keep_registers(p);
    m.of_v.release(of_v), of_v.next();

#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = tile.first + tile_row(i);
      const bool inside = t < n.queries;
      const float total = warp_sum<4>(softmax.sum[i]);
      store_sums<T, kHead>(k.y.template at<T>(tile.batch, tile.head, t), y, i, k.rescale / total,
                           n.dim, inside);
      if (inside && threadIdx.x % 4 == 0)
        k.lse[row0 + tile_row(i)] = softmax.largest[i] * k.scale_log2 * float(kLn2) + log_of(total);
    }
  }
}

template <class T, int kHead, bool kDropout>
__global__ void __launch_bounds__(kHopperThreads, 1)
    attention_forward_hopper_kernel(const __grid_constant__ Maps maps,
                                    const __grid_constant__ ForwardProblem<T> k,
                                    const __grid_constant__ Schedule work) {
  if constexpr (kHasWgmma) {
    auto& m = shared_memory<Shared<T, kHead>>();
    if (threadIdx.x == 0) {
      m.of_q.init(1), m.of_k.init(1), m.of_v.init(1);
      publish_barriers();
    }
    __syncthreads();
    wait_for_previous_kernel();
    if (threadIdx.x < kGroup) {
      give_registers<kLoaderRegisters>();
      if (threadIdx.x == 0) load<T, kHead>(m, maps, k.sizes, work);
    } else {
      take_registers<kComputeRegisters>();
      compute<T, kHead, kDropout>(m, k, work);
    }
  } else {
    __trap();
  }
}

template <class T, int kHead>
void launch_forward(const Cuda& on, const AttentionForwardArgs& a) {
  const ForwardProblem<T> k(a);
  const Maps maps{map_of(a.q, kTileRows), map_of(a.k, kKeys), map_of(a.v, kKeys)};
  const Schedule work = schedule(a.q.shape[0] * a.q.shape[1], a.q.shape[2],
                                 a.k.shape[2] * kHead * int64_t{2 * sizeof(T)});
  const int64_t blocks =
      std::min<int64_t>(int64_t{work.heads} * work.tiles, detail::properties().multiProcessorCount);
  launch(on,
         {.grid = dim3(static_cast<unsigned>(blocks)),
          .block = dim3(kHopperThreads),
          .shared = kSharedBytes<Shared<T, kHead>>,
          .overlap = true},
         k.dropout ? attention_forward_hopper_kernel<T, kHead, true>
                   : attention_forward_hopper_kernel<T, kHead, false>,
         maps, k, work);
}

}  // namespace

bool forward_hopper(const Cuda& on, const AttentionForwardArgs& a) {
  if (!fits_hopper(a.settings, a.q, a.k, a.v, a.y)) return false;
  const auto run = [&]<class T>() {
    if (a.q.shape[3] <= 64)
      launch_forward<T, 64>(on, a);
    else
      launch_forward<T, 128>(on, a);
  };
  if (a.q.dtype == bfloat16)
    run.template operator()<BFloat16>();
  else
    run.template operator()<Float16>();
  return true;
}

}  // namespace norma::attention
