#include <algorithm>

#include "norma/ops/ssd/ssd_hopper.cuh"

namespace norma::ssd_cuda {
namespace {

// The states before each chunk, and against time their gradients. A block has three heads of a
// group, each a warpgroup's, which holds the state in registers; b or c serves all three. What is
// written is twice what is read: chunks are asked for kStages − 1 ahead.

constexpr int kHeads = 3, kStages = 3;

struct StatesMaps {
  CUtensorMap rows[2], columns[2];  // x and b, then dy and c
};
template <class T>
struct StatesKernelArgs {
  Sizes size;
  Steps steps;
  StateSide<T> sides[2];
  int64_t each, segments;  // chunks a segment
  const float* carried;    // (sides, B, H, segments, P, N): the segments' beginnings, or null
  int heads, parts;        // of a block; blocks a group
};

template <class T, int kN>
struct StatesShared {
  T columns[kStages][kN / 64 * kPanel], rows[kStages][kHeads][kPanel];
  struct Head {
    T out[kN / 64 * kPanel], scaled[2][kPanel];
  } heads[kHeads];
  float sum[kStages][kHeads][kQ], delta[kStages][kHeads][kQ];
  SharedBarrier here[kStages], read[kStages];
};

/// A segment of a head in one direction, and a warp's 16 rows of its state.
template <class T, int kN>
struct StatesWalk {
  using Shared = StatesShared<T, kN>;

  const StatesKernelArgs<T>& k;
  Shared& shared;
  bool back = blockIdx.y == 1;
  int slot = group_of_block(), heads;  // heads: those that there are
  int batch, group, first_head, head, begin, end;
  int i0 = int(threadIdx.x) / kWarpSize % 4 * 16;
  int lane = lane_of(), g = lane / 4, c = lane % 4 * 2;

  __device__ StatesWalk(const StatesKernelArgs<T>& k, Shared& shared) : k(k), shared(shared) {
    const Sizes& s = k.size;
    const int part = int(blockIdx.x) % k.parts;
    batch = int(blockIdx.x) / (k.parts * s.groups), group = int(blockIdx.x) / k.parts % s.groups;
    heads = min(k.heads, s.shared() - part * k.heads);
    first_head = group * s.shared() + part * k.heads, head = first_head + slot;
    begin = int(blockIdx.z * k.each), end = int(min(begin + k.each, s.chunks));
  }
  __device__ __forceinline__ int chunk_at(int step) const {
    return back ? int(k.size.chunks) - 1 - step : step;
  }

  /// One thread, of a place that has been read.
  __device__ void fetch(const StatesMaps& maps, int step) const {
    constexpr uint32_t kOfHead = sizeof shared.rows[0][0] + 2 * sizeof shared.sum[0][0];
    const int at = (step - begin) % kStages, t0 = chunk_at(step) * kQ;
    SharedBarrier& done = shared.here[at];
    done.expect(sizeof shared.columns[0] + heads * kOfHead);
#pragma unroll
    for (int n = 0; n < kN; n += 64)
      copy_box(shared.columns[at] + n * kQ, maps.columns[back], done, n, t0, group, batch);
    for (int i = 0; i < heads; ++i) {
      copy_box(shared.rows[at][i], maps.rows[back], done, 0, t0, first_head + i, batch);
      const int64_t from = Steps::at(k.size, batch, first_head + i, t0);
      bulk_copy(shared.sum[at][i], k.steps.sum + from, sizeof shared.sum[0][0], done);
      bulk_copy(shared.delta[at][i], k.steps.delta + from, sizeof shared.delta[0][0], done);
    }
  }

  __device__ __forceinline__ void run(const StatesMaps& maps) const {
    const StateSide<T>& side = k.sides[back];
    const Sizes& s = k.size;
    const bool wants_last = side.last && end == s.chunks;
    const int stop = wants_last ? end : end - 1;  // of the chunks that are read
    const bool fetches = threadIdx.x == 0;
    if (fetches)
      for (int step = begin; step < min(begin + kStages - 1, stop); ++step) fetch(maps, step);
    __syncwarp();
    const int64_t sequence = int64_t{batch} * s.heads + head, own = (i0 + g) * int64_t{kN} + c;
    const float* from =
        k.carried ? k.carried +
                        ((back * s.batch * s.heads + sequence) * k.segments + blockIdx.z) * kP * kN
        : side.first ? side.first + sequence * kP * kN
                     : nullptr;
    float state[kN / 2];
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) state[i] = from ? from[own + place_of<kN>(i)] : 0.0f;
    for (int step = begin; step < end; ++step) {
      T* const out = side.states + ((batch * s.chunks + chunk_at(step)) * s.heads + head) * kP * kN;
      put_rows<T, kN>(shared.heads[slot].out, i0, state);
      if (step == stop) return store(out);
      const int turn = step - begin;
      if (fetches && step + kStages - 1 < stop) {
        if (turn > 0) shared.read[(turn - 1) % kStages].wait((turn - 1) / kStages % 2);
        fetch(maps, step + kStages - 1);
      }
      __syncwarp();
      advance(state, turn, out);
    }
    float* to = side.last + sequence * kP * kN + own;
#pragma unroll
    for (int i = 0; i < kN / 2; i += 2) put_pair(to + place_of<kN>(i), state[i], state[i + 1]);
  }

  /// Stores meanwhile what the state was.
  __device__ __forceinline__ void advance(float (&state)[kN / 2], int turn, T* out) const {
    const int at = turn % kStages;
    shared.here[at].wait(turn / kStages % 2);
    const float* const sum = shared.sum[at][slot];
    const float* const delta = shared.delta[at][slot];
    const float last = sum[kQ - 1], fade = exp2_fast(last);
    T* const scaled = shared.heads[slot].scaled[turn % 2];
    scale_panel(scaled, shared.rows[at][slot], [&](int row) {
      return back ? exp2_fast(sum[row]) : exp2_fast(last - sum[row]) * delta[row];
    });
    copies_follow_writes();
#pragma unroll
    for (float& v : state) v *= fade;
    named_sync(1 + slot, kGroup);  // all rows are scaled; those before the last have been read
    keep_registers(state);
    wgmma_begin();
#pragma unroll
    for (int q = 0; q < kQ; q += 16)
      wgmma_rows<T, kN, true, true>(state, columns_of(scaled, kQ, q),
                                    columns_of(shared.columns[at], kQ, q), true);
    wgmma_commit();
    store(out);
    wgmma_wait<0>();
    keep_registers(state);
    __syncwarp();
    if (lane == 0) shared.read[at].arrive();
  }

  /// A warp's own rows, 16 bytes a lane.
  __device__ __forceinline__ void store(T* to) const {
    const T* const stage = shared.heads[slot].out;
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * kN / 8; i += kWarpSize) {
      const int row = i0 + i / (kN / 8), piece = i % (kN / 8);
      *reinterpret_cast<uint4*>(to + row * kN + piece * 8) =
          *reinterpret_cast<const uint4*>(piece_of(stage + piece / 8 * kPanel, row, piece % 8));
    }
  }
};

/// blockIdx: heads of a sequence, along time or against it, segments in the order of the walk.
template <class T, int kN>
__global__ void __launch_bounds__(kGroup* kHeads, 1)
    ssd_states_kernel(const __grid_constant__ StatesMaps maps,
                      const __grid_constant__ StatesKernelArgs<T> k) {
  if constexpr (kHasWgmma) {
    auto& shared = shared_memory<StatesShared<T, kN>>();
    const StatesWalk<T, kN> own(k, shared);
    if (threadIdx.x == 0) {
#pragma unroll
      for (int i = 0; i < kStages; ++i) shared.here[i].init(1), shared.read[i].init(4 * own.heads);
      publish_barriers();
    }
    __syncthreads();
    if (own.slot < own.heads) own.run(maps);
  } else {
    __trap();
  }
}

}  // namespace

template <class T, int kN>
bool compute_states_hopper(Cuda on, const Sizes& s, const Steps& steps, const StateSide<T>& along,
                           const StateSide<T>* against) {
  const StateSide<T>& other = against ? *against : along;
  if (!runs_on_hopper(on, s, along.rows, along.columns, other.rows, other.columns)) return false;
  StatesKernelArgs<T> args{s, steps, {along, other}};
  args.heads = std::min(s.shared(), kHeads);
  args.parts = ceil_div(s.shared(), args.heads);
  const unsigned sides = against ? 2 : 1;
  const Segments segments = segments_of(s, s.batch * s.groups * args.parts * sides);
  args.each = segments.each, args.segments = segments.count;
  const bool several = segments.count > 1;
  const DeviceScratch<float> carried(on, several ? segments.numbers(s, int(sides), kN) : 1);
  if (several) {
    carry_states<T>(on, s, kN, steps, along, against, segments, carried.data());
    args.carried = carried.data();
  }
  const StatesMaps maps{
      {map_of(along.rows, s, s.heads, kP), map_of(other.rows, s, s.heads, kP)},
      {map_of(along.columns, s, s.groups, kN), map_of(other.columns, s, s.groups, kN)}};
  launch(on,
         {.grid = dim3(unsigned(s.batch * s.groups * args.parts), sides, unsigned(segments.count)),
          .block = dim3(unsigned(kGroup * args.heads)),
          .shared = kSharedBytes<StatesShared<T, kN>>},
         ssd_states_kernel<T, kN>, maps, args);
  return true;
}

template bool compute_states_hopper<BFloat16, 64>(Cuda, const Sizes&, const Steps&,
                                                  const StateSide<BFloat16>&,
                                                  const StateSide<BFloat16>*);
template bool compute_states_hopper<BFloat16, 128>(Cuda, const Sizes&, const Steps&,
                                                   const StateSide<BFloat16>&,
                                                   const StateSide<BFloat16>*);
template bool compute_states_hopper<Float16, 64>(Cuda, const Sizes&, const Steps&,
                                                 const StateSide<Float16>&,
                                                 const StateSide<Float16>*);
template bool compute_states_hopper<Float16, 128>(Cuda, const Sizes&, const Steps&,
                                                  const StateSide<Float16>&,
                                                  const StateSide<Float16>*);

}  // namespace norma::ssd_cuda
