#include <algorithm>

#include "norma/ops/ssd/ssd_hopper.cuh"

namespace norma::ssd_cuda {
namespace {

// The forward pass of half types in one walk along time. What is read is x, b and c once, and b and
// c serve the three heads of a block, each a warpgroup's, which holds its state in registers. With
// two warpgroups a head, one for outputs and one for the state, there were too few registers for
// products of 64 rows.

constexpr int kHeads = 3, kStages = 2;

template <class T>
struct WalkKernelArgs {
  Sizes size;
  Steps steps;
  Sequence<T> y;
  const float *d, *first, *carried;  // (H, P); (B, H, P, N); (B, H, segments, P, N): each or null
  float* last;                       // (B, H, P, N) or null
  int64_t each, segments;            // chunks a segment
  int heads, parts;                  // of a block; blocks a group
};
struct WalkMaps {
  CUtensorMap x, b, c;
};

template <class T, int kN>
struct WalkShared {
  T b[kStages][kN / 64 * kPanel], c[kStages][kN / 64 * kPanel], x[kStages][kHeads][kPanel];
  struct Head {
    T state[kN / 64 * kPanel], fading_x[kPanel], y[kPanel];  // the state before the chunk
  } heads[kHeads];
  float sum[kStages][kHeads][kQ], delta[kStages][kHeads][kQ], d[kHeads][kP];
  SharedBarrier here[kStages], read[kStages];
};

/// A segment of a head, and a warp's 16 rows of it.
template <class T, int kN>
struct Walk {
  using Shared = WalkShared<T, kN>;

  const WalkKernelArgs<T>& k;
  Shared& shared;
  int slot, heads;  // heads: those that there are
  int batch, group, first_head, head, begin, end;
  int i0 = int(threadIdx.x) / kWarpSize % 4 * 16;
  int lane = lane_of(), g = lane / 4, c = lane % 4 * 2;

  __device__ Walk(const WalkKernelArgs<T>& k, Shared& shared) : k(k), shared(shared) {
    const Sizes& s = k.size;
    const int part = int(blockIdx.x) % k.parts;
    batch = int(blockIdx.x) / (k.parts * s.groups), group = int(blockIdx.x) / k.parts % s.groups;
    slot = group_of_block(), heads = min(k.heads, s.shared() - part * k.heads);
    first_head = group * s.shared() + part * k.heads, head = first_head + slot;
    begin = int(blockIdx.y * k.each), end = int(min(begin + k.each, s.chunks));
  }

  /// One thread, of a place that has been read.
  __device__ void fetch(const WalkMaps& maps, int chunk) const {
    constexpr uint32_t kShared = 2 * sizeof shared.b[0];
    constexpr uint32_t kOfHead = sizeof shared.x[0][0] + 2 * sizeof shared.sum[0][0];
    const int at = (chunk - begin) % kStages, t0 = chunk * kQ;
    SharedBarrier& done = shared.here[at];
    done.expect(kShared + heads * kOfHead);
#pragma unroll
    for (int n = 0; n < kN; n += 64) {
      copy_box(shared.b[at] + n * kQ, maps.b, done, n, t0, group, batch);
      copy_box(shared.c[at] + n * kQ, maps.c, done, n, t0, group, batch);
    }
    for (int i = 0; i < heads; ++i) {
      copy_box(shared.x[at][i], maps.x, done, 0, t0, first_head + i, batch);
      const int64_t from = Steps::at(k.size, batch, first_head + i, t0);
      bulk_copy(shared.sum[at][i], k.steps.sum + from, sizeof shared.sum[0][0], done);
      bulk_copy(shared.delta[at][i], k.steps.delta + from, sizeof shared.delta[0][0], done);
    }
  }
  using State =
      float[kN / 64][32];  // a panel each: a product of both would take too many registers
  __device__ __forceinline__ void put_state(const float (&state)[kN / 2]) const {
    put_rows<T, kN>(shared.heads[slot].state, i0, state);
    copies_follow_writes();
  }
  __device__ __forceinline__ void meet() const { named_sync(1 + slot, kGroup); }

  /// m = L ⊙ c bᵀ ⊙ Δ, as a left operand.
  __device__ __forceinline__ void to_scores(uint32_t (&m)[kQ / 16][4], const float (&cb)[kQ / 2],
                                            int at, const float (&own)[2]) const {
    // What of a pair on the diagonal is not ahead, where 2^(s_i − s_j) may overflow.
    const uint32_t seen = (g >= c ? 0xffffu : 0) | (g > c ? 0xffff0000u : 0);
#pragma unroll
    for (int j = 0; j < kQ; j += 16) {
      uint32_t(&to)[4] = m[j / 16];
      if (j > i0) {  // the same for the whole warp
        to[0] = to[1] = to[2] = to[3] = 0;
        continue;
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int column = j + half * 8 + c;
        const Pair sum = read_pair(&shared.sum[at][slot][column]);
        const Pair delta = read_pair(&shared.delta[at][slot][column]);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const int i = (j / 8 + half) * 4 + row * 2;
          to[half * 2 + row] =
              pack_pair<T>(cb[i] * exp2_fast(own[row] - sum.low) * delta.low,
                           cb[i + 1] * exp2_fast(own[row] - sum.high) * delta.high);
        }
      }
      if (j == i0) to[0] &= seen, to[2] = 0, to[3] &= seen;
    }
  }

  __device__ __forceinline__ void run(const WalkMaps& maps) const {
    const bool fetches = threadIdx.x == 0;
    if (fetches) fetch(maps, begin);
    const int64_t sequence = int64_t{batch} * k.size.heads + head;
    const int64_t own = (i0 + g) * int64_t{kN} + c;
    const float* from = k.carried ? k.carried + (sequence * k.segments + blockIdx.y) * kP * kN
                        : k.first ? k.first + sequence * kP * kN
                                  : nullptr;
    float state[kN / 2];
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) state[i] = from ? from[own + place_of<kN>(i)] : 0.0f;
    put_state(state);
    meet();
    const bool wants_last = k.last && end == k.size.chunks;
    for (int chunk = begin; chunk < end; ++chunk) {
      const int turn = chunk - begin, at = turn % kStages;
      if (fetches && chunk + 1 < end) {
        if (turn > 0) shared.read[(turn - 1) % kStages].wait((turn - 1) / kStages % 2);
        fetch(maps, chunk + 1);
      }
      __syncwarp();
      shared.here[at].wait(turn / kStages % 2);
      step(state, at, int64_t{chunk} * kQ);
      if (lane == 0) shared.read[at].arrive();
      if (chunk + 1 == end) break;
      meet();  // the state has been read
      put_state(state);
      meet();
    }
    if (!wants_last) return;
    float* to = k.last + sequence * kP * kN + own;
#pragma unroll
    for (int i = 0; i < kN / 2; i += 2) put_pair(to + place_of<kN>(i), state[i], state[i + 1]);
  }

  /// A chunk's outputs, and the state after it.
  __device__ __forceinline__ void step(float (&state)[kN / 2], int at, int64_t t0) const {
    const auto& own = shared.heads[slot];
    float cb[kQ / 2] = {}, y[kP / 2] = {};
    keep_registers(cb);
    keep_registers(y);
    wgmma_begin();
#pragma unroll
    for (int n = 0; n < kN; n += 16)
      wgmma_rows<T, kQ>(cb, rows_of(shared.c[at], kQ, 0, n), rows_of(shared.b[at], kQ, 0, n),
                        n > 0);
    wgmma_commit();
#pragma unroll
    for (int n = 0; n < kN; n += 16)
      wgmma_rows<T, kP>(y, rows_of(shared.c[at], kQ, 0, n), rows_of(own.state, kP, 0, n), n > 0);
    wgmma_commit();
    const float whole = shared.sum[at][slot][kQ - 1], fade = exp2_fast(whole);
    const float sums[2] = {shared.sum[at][slot][i0 + g], shared.sum[at][slot][i0 + g + 8]};
    scale_panel(shared.heads[slot].fading_x, shared.x[at][slot],
                [&](int row) {  // at the chunk's end
                  return exp2_fast(whole - shared.sum[at][slot][row]) * shared.delta[at][slot][row];
                });
    copies_follow_writes();
    wgmma_wait<1>();
    keep_registers(cb);
    uint32_t m[kQ / 16][4];
    to_scores(m, cb, at, sums);
    const float rise[2] = {exp2_fast(sums[0]), exp2_fast(sums[1])};
    wgmma_wait<0>();
    keep_registers(y);
#pragma unroll
    for (int i = 0; i < kP / 2; ++i) y[i] *= rise[i / 2 % 2];
#pragma unroll
    for (float& v : state) v *= fade;
    meet();  // the fading x is whole
    keep_registers(m);
    keep_registers(y);
    keep_registers(state);
    wgmma_begin();
#pragma unroll
    for (int j = 0; j < kQ; j += 16)
      wgmma_registers<T, kP, true>(y, m[j / 16], columns_of(shared.x[at][slot], kQ, j), true);
    wgmma_commit();
#pragma unroll
    for (int q = 0; q < kQ; q += 16)
      wgmma_rows<T, kN, true, true>(state, columns_of(own.fading_x, kQ, q),
                                    columns_of(shared.b[at], kQ, q), true);
    wgmma_commit();
    wgmma_wait<1>();
    keep_registers(y);
    keep_registers(m);
    if (k.d) add_skip(y, shared.x[at][slot]);
    store(y, t0);
    wgmma_wait<0>();
    keep_registers(state);
  }
  __device__ __forceinline__ void add_skip(float (&y)[kP / 2], const T* x) const {
#pragma unroll
    for (int p = 0; p < kP; p += 16) {
      Block<T> block;
      load_block(block, x, i0, p);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Pair u = pair_of(block, i), d = read_pair(&shared.d[slot][p + i / 2 * 8 + c]);
        y[p / 2 + i * 2] += d.low * u.low, y[p / 2 + i * 2 + 1] += d.high * u.high;
      }
    }
  }
  /// By way of the warp's own rows of shared memory, 16 bytes a lane.
  __device__ __forceinline__ void store(const float (&y)[kP / 2], int64_t t0) const {
    T* const stage = shared.heads[slot].y;
    __syncwarp();
    put_rows<T, kP>(stage, i0, y);
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * 8; i += kWarpSize) {
      const int row = i0 + i / 8;
      if (t0 + row >= k.size.length) continue;
      *reinterpret_cast<uint4*>(k.y.row(batch, t0 + row) + head * kP + i % 8 * 8) =
          *reinterpret_cast<const uint4*>(piece_of(stage, row, i % 8));
    }
  }
};

/// blockIdx: heads of a sequence, segments.
template <class T, int kN>
__global__ void __launch_bounds__(kGroup* kHeads, 1)
    ssd_walk_kernel(const __grid_constant__ WalkMaps maps,
                    const __grid_constant__ WalkKernelArgs<T> k) {
  if constexpr (kHasWgmma) {
    auto& shared = shared_memory<WalkShared<T, kN>>();
    const Walk<T, kN> own(k, shared);
    if (threadIdx.x == 0) {
#pragma unroll
      for (int i = 0; i < kStages; ++i) shared.here[i].init(1), shared.read[i].init(4 * own.heads);
      publish_barriers();
    }
    if (k.d)
      for (int i = int(threadIdx.x); i < own.heads * kP; i += int(blockDim.x))
        shared.d[i / kP][i % kP] = k.d[own.first_head * kP + i];
    __syncthreads();
    if (own.slot < own.heads) own.run(maps);
  } else {
    __trap();
  }
}

}  // namespace

template <class T, int kN>
bool forward_hopper(Cuda on, const SsdForwardArgs& k, const Sizes& s, const Steps& steps) {
  const auto x = Sequence<const T>::of(k.x), b = Sequence<const T>::of(k.b),
             c = Sequence<const T>::of(k.c);
  if (!runs_on_hopper(on, s, x, b, c)) return false;
  WalkKernelArgs<T> args{s, steps, Sequence<T>::of(k.y)};
  args.d = k.d ? steps.skip : nullptr, args.first = k.state.as<float>(),
  args.last = k.last_state.as<float>();
  args.heads = std::min(s.shared(), kHeads);
  args.parts = ceil_div(s.shared(), args.heads);
  const int64_t beside = s.batch * s.groups * args.parts;
  const Segments segments = segments_of(s, beside);
  args.each = segments.each, args.segments = segments.count;
  const DeviceScratch<float> carried(on, segments.count > 1 ? segments.numbers(s, 1, kN) : 1);
  if (segments.count > 1) {
    const StateSide<T> along{x, b, args.first, nullptr, args.last};
    carry_states<T>(on, s, kN, steps, along, nullptr, segments, carried.data());
    args.carried = carried.data();
  }
  const WalkMaps maps{map_of(x, s, s.heads, kP), map_of(b, s, s.groups, kN),
                      map_of(c, s, s.groups, kN)};
  launch(on,
         {.grid = dim3(unsigned(beside), unsigned(segments.count)),
          .block = dim3(unsigned(kGroup * args.heads)),
          .shared = kSharedBytes<WalkShared<T, kN>>},
         ssd_walk_kernel<T, kN>, maps, args);
  return true;
}

template bool forward_hopper<BFloat16, 64>(Cuda, const SsdForwardArgs&, const Sizes&, const Steps&);
template bool forward_hopper<BFloat16, 128>(Cuda, const SsdForwardArgs&, const Sizes&,
                                            const Steps&);
template bool forward_hopper<Float16, 64>(Cuda, const SsdForwardArgs&, const Sizes&, const Steps&);
template bool forward_hopper<Float16, 128>(Cuda, const SsdForwardArgs&, const Sizes&, const Steps&);

}  // namespace norma::ssd_cuda
