#pragma once

#include "norma/core/cuda/arrivals.h"
#include "norma/core/cuda/async_copy.cuh"
#include "norma/core/cuda/scratch.h"
#include "norma/ops/norm/backward_terms.cuh"
#include "norma/ops/norm/cluster.cuh"
#include "norma/ops/norm/odd_rows.cuh"
#include "norma/ops/norm/ring_plan.cuh"
#include "norma/ops/norm/weight_sums.cuh"

namespace norma::norm_cuda {

/// By which blocks keep together (choose_pace). The first warp of a block's first unit, or of a
/// cluster's, leads: it counts its turns, all of these in one word, and waits where it is ahead of
/// the mean. The block's other units follow it by way of shared memory: 24 that count for
/// themselves are too many for one word. What a leader waits for may not run at all, where others
/// have part of the GPU: after a time it gives up for good. No result depends on it.
struct Pace {
  unsigned* progress = nullptr;  ///< arrival_counter()
  int leaders = 0, times = 0;    ///< that count, and how often each does
  int lead = 0;                  ///< counts of all by which one may be ahead
  int log_turns = 0;             ///< of the plan's pace_turns
  int turn_mask = 0;             ///< and that less one, or the compiler keeps it and spills

  Pace() = default;
  /// For so many units that have at least so many turns.
  Pace(const Cuda& on, const RingPlan& plan, int64_t units, int64_t turns)
      : leaders(static_cast<int>(ceil_div(units, int64_t{plan.units}))),
        lead(leaders * plan.pace_lead / 8) {
    if (plan.pace_turns > 0 && turns > 0) times = static_cast<int>((turns - 1) / plan.pace_turns);
    while (plan.pace_turns >> (log_turns + 1) > 0) ++log_turns;
    turn_mask = plan.pace_turns - 1;
    if (times > 0) progress = detail::arrival_counter(on);
  }
};

template <int kWidth>
__device__ __forceinline__ void read_floats(uint32_t at, float (&v)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; i += 4) {
    const uint4 words = read_shared(at + 4u * static_cast<uint32_t>(i));
    v[i] = __uint_as_float(words.x), v[i + 1] = __uint_as_float(words.y);
    v[i + 2] = __uint_as_float(words.z), v[i + 3] = __uint_as_float(words.w);
  }
}
template <int kWidth>
__device__ __forceinline__ void write_floats(uint32_t at, const float (&v)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; i += 4)
    write_shared(at + 4u * static_cast<uint32_t>(i),
                 uint4{__float_as_uint(v[i]), __float_as_uint(v[i + 1]), __float_as_uint(v[i + 2]),
                       __float_as_uint(v[i + 3])});
}

/// A warp of norm_backward_ring_kernel: its ring, its columns and their sums for the weights.
///   kFull  LayerNorm, or a bias's gradient; else neither
///   kWide  h and its gradients are float, where T is not
///   kOdd   rows may begin anywhere and end within a vector
///   kHolds what a row's sums were made of stays in registers until the row is finished; else it is
///          formed again from the stage
template <class T, GateOrder kGate, bool kFull, bool kWide, RingUnit kUnit, bool kOdd, bool kHolds>
struct RingWarp {
  using Acc = float;
  using H = std::conditional_t<kWide, float, T>;
  static constexpr bool kBlock = kUnit == RingUnit::chunk;
  static constexpr int kWidth = kLaneWidth<T>,
                       kVecs = kUnit == RingUnit::short_rows ? 1 : kChunk / (kWarpSize * kWidth);
  static constexpr bool kGateFirst = kGate == GateOrder::gate_then_norm;
  static constexpr bool kGateLast = kGate == GateOrder::norm_then_gate;
  static constexpr bool kGated = kGateFirst || kGateLast;
  // Of chunks' rows with a mean, the statistics of the next turns wait in shared memory: asked for
  // a row at a time they were 30 of 540 instructions and six registers.
  static constexpr bool kKeepsStats = kBlock && kFull;
  // Of one warp's rows they come with the rows: memory at its bound brings what is asked for a row
  // ahead too late, which was half of RMSNorm's waiting at 256 columns. Rows of float, where a row
  // is more time, and odd ones, much of whose time is arithmetic, have them in fewer instructions
  // so, but for those with a gate and a mean, for which registers do not suffice.
  static constexpr bool kStaged = !kBlock && ((kGated && kFull) || (sizeof(T) == 2 && !kOdd));
  // Missing vectors are zeros and take part in sums, so that no branch parts a warp's two vectors,
  // where there are registers for two at a time.
  static constexpr bool kDense = kBlock && !kOdd && !(kGated && kFull);
  // Of two vectors a lane with a mean, registers suffice for x̂ alone.
  static constexpr bool kHoldsAll = kHolds && !(kFull && kVecs > 1);
  static constexpr uint32_t kControl = control_bytes(kKeepsStats);
  static constexpr bool kKeepsBias = kGateLast && sizeof(T) == 2;  // float has no room, nor need

  const NormBackwardArgs& k;
  const RingPlan& plan;
  const Pace& pace;
  Acc* const aside;
  unsigned char* memory;
  const int lane = kept(static_cast<int>(threadIdx.x) % kWarpSize);
  const int warp = threadIdx.x / kWarpSize;
  const int lanes, lane_in, team;   // of those that share a group: how many, which; their number
  const int unit, chunk;            // the unit's number in the block; the warp's chunk of a group
  const bool leads;                 // has its unit's first chunk in this block
  int column, group;                // of this lane's first vector
  int place, units, turns;          // among the units of a set, and tiles for it
  int often;                        // at_times
  uint32_t control, meeting, ring;  // in shared memory: what it keeps, its unit's slots, its stages
  Acc gain[kVecs][kWidth], dw[kVecs][kWidth] = {};
  Acc db[kFull ? kVecs : 1][kWidth] = {};

  __device__ __forceinline__ RingWarp(const NormBackwardArgs& args, const RingPlan& p,
                                      const Pace& together, Acc* sums_aside, unsigned char* shared,
                                      int rank)
      : k(args),
        plan(p),
        pace(together),
        aside(sums_aside),
        memory(shared),
        lanes(kBlock ? kWarpSize : p.order.lanes),
        lane_in(lane & (lanes - 1)),
        team(kBlock ? 0 : lane / lanes),
        unit(kBlock ? warp / p.unit_warps : warp),
        chunk(kBlock ? rank * p.unit_warps + turned(warp, p.unit_warps) : 0),
        leads(chunk == rank * p.unit_warps) {
    const int number = static_cast<int>(blockIdx.x) / plan.cluster * plan.units + unit;
    const int set = number % plan.bound;
    column = chunk * kChunk + lane_in * kWidth;
    group = set * plan.set_groups + (plan.by_rows ? 0 : team);
    place = number / plan.bound;
    units = static_cast<int>(gridDim.x) / plan.cluster * plan.units / plan.bound;
    const int left = ceil_div(plan.rows, plan.tile_rows) - place;
    const bool works = place < units && left > 0 && chunk < plan.order.chunks;
    turns = works ? ceil_div(left, units) : 0;
    const int pace_mask = pace.times > 0 && chunk == 0 ? pace.turn_mask : kStatsKept / 2 - 1;
    often = kept(min(pace_mask, kStatsKept / 2 - 1));
    const uint32_t base = shared_address(memory);
    control = kept(base + static_cast<uint32_t>(warp) * plan.warp_bytes);
    meeting =
        kBlock ? kept(base + plan.units_at + static_cast<uint32_t>(unit) * plan.unit_bytes) : 0;
    ring = kept(base + plan.ring_at + static_cast<uint32_t>(warp * plan.stages) * plan.stage_bytes);
    if (lane >= kSenders) return;
    const RingRows& t = plan.in[lane];
    const int piece = kBlock
                          ? min(plan.size - chunk * kChunk, kChunk)
                          : plan.size * min(plan.groups - set * plan.set_groups, plan.set_groups);
    const int first = set * plan.set_groups * plan.size + chunk * kChunk;
    const RingSender mine{
        t.data + int64_t{place} * plan.tile_rows * t.row_bytes + int64_t{first} * t.element,
        int64_t{units} * plan.tile_rows * t.row_bytes, static_cast<uint32_t>(piece * t.element),
        static_cast<uint32_t>(piece) * plan.element_bytes, ring + t.at};
    const auto* words = reinterpret_cast<const uint4*>(&mine);
    write_shared(sender_at(), words[0]);
    write_shared(sender_at() + 16, words[1]);
  }

  /// A warp's chunk among those of its unit in the block. Warps w, w + 4, … share a scheduler: they
  /// are to have different chunks, since the last one of a row is often a part of one.
  static __device__ __forceinline__ int turned(int warp, int unit_warps) {
    const int in_unit = warp % unit_warps;
    return (in_unit + (warp - in_unit) / 4) % unit_warps;
  }
  /// v, which the compiler would else work out again at each use.
  template <class V>
  static __device__ __forceinline__ V kept(V v) {
    asm volatile("" : "+r"(v));
    return v;
  }
  /// Sends for the first tiles, and meanwhile fetches the weights.
  __device__ __forceinline__ void start() {
    if (lane == 0) {
      for (int stage = 0; stage < plan.stages; ++stage)
        // Who announces bytes, and who fetch statistics.
        landed_in(stage).init(kStaged ? 1 + kWarpSize : 1);
      publish_barriers();
    }
    __syncwarp();
    if constexpr (kKeepsStats || kStaged) clear_stats();
    if constexpr (kKeepsStats) fetch_stats(0);
    if constexpr (kDense) clear_missing();
    for (int stage = 0; stage < plan.stages; ++stage) send_into(stage, stage);
    if constexpr (kKeepsBias) keep_bias();
#pragma unroll
    for (int v = 0; v < kVecs; ++v) read_gain(v, gain[v]);
  }

  /// Zeros for what no copy brings.
  __device__ __forceinline__ void clear_missing() const {
#pragma unroll 1
    for (int byte = lane * 16; byte < plan.stages * static_cast<int>(plan.stage_bytes);
         byte += kWarpSize * 16)
      if (column - lane * kWidth + kChunk > plan.size)
        write_shared(ring + static_cast<uint32_t>(byte), uint4{0, 0, 0, 0});
    copies_follow_writes();
    __syncwarp();
  }
  __device__ __forceinline__ BarrierAt landed_in(int stage) const {
    return {control + static_cast<uint32_t>(stage) * 8};
  }
  __device__ __forceinline__ int of(int v) const {
    return v * (kBlock ? kWarpSize : lanes) * kWidth;
  }
  __device__ __forceinline__ bool exists(int v) const { return column + of(v) < plan.size; }
  /// Elements of a vector that exists.
  __device__ __forceinline__ int count(int v) const {
    return kOdd ? min(plan.size - column - of(v), kWidth) : kWidth;
  }
  /// Of a weight, or a sum for one, of which there is one a group or one for all.
  __device__ __forceinline__ int64_t weight_place(int64_t n) const {
    return (n == plan.size ? 0 : int64_t{group} * plan.size) + column;
  }
  __device__ __forceinline__ void read_gain(int v, Acc (&to)[kWidth]) const {
#pragma unroll
    for (int e = 0; e < kWidth; ++e) to[e] = 1;
    if (!k.w || !exists(v) || group >= plan.groups) return;
    read_weight<T, !kOdd>(k.w, weight_place(k.w.n) + of(v), count(v), to);
    if (k.options.zero_centered)
#pragma unroll
      for (int e = 0; e < kWidth; ++e) to[e] = add(to[e], Acc(1));
  }

  /// b, which each row needs again and registers have no room for, waits in shared memory.
  template <class E>
  __device__ __forceinline__ uint32_t kept_bias(int v) const {
    return control + kControl +
           static_cast<uint32_t>((v * kWarpSize + lane) * kWidth * int{sizeof(E)});
  }
  __device__ __forceinline__ void keep_bias() const {
    if (!k.b || group >= plan.groups) return;
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      if (!exists(v)) continue;
      Acc b[kWidth];
      read_weight<T, !kOdd>(k.b, weight_place(k.b.n) + of(v), count(v), b);
      if (k.b.dtype == dtype_of<T>)
        write_shared(kept_bias<T>(v), packed<T>(b));
      else
        write_floats(kept_bias<Acc>(v), b);
    }
  }
  __device__ __forceinline__ void read_bias(int v, Acc (&to)[kWidth]) const {
    if constexpr (!kKeepsBias) {
      if (exists(v)) read_weight<T, !kOdd>(k.b, weight_place(k.b.n) + of(v), count(v), to);
    } else if (k.b.dtype == dtype_of<T>) {
      unpack<T>(read_shared(kept_bias<T>(v)), to);
    } else {
      read_floats(kept_bias<Acc>(v), to);
    }
  }

  // ---- What is read

  /// What a lane sends its tensor's part of the next tile by.
  __device__ __forceinline__ uint32_t sender_at() const {
    return control + kSendersAt + static_cast<uint32_t>(lane) * uint32_t{sizeof(RingSender)};
  }
  __device__ __forceinline__ RingSender sender() const {
    uint4 words[2] = {read_shared(sender_at()), read_shared(sender_at() + 16)};
    return *reinterpret_cast<const RingSender*>(words);
  }
  /// The next time it is to send from so far on.
  __device__ __forceinline__ void advance(RingSender s) const {
    s.next += s.step;
    write_shared(sender_at(), *reinterpret_cast<const uint4*>(&s));
  }
  /// Sends for the tile of a turn. The bytes may land before they are expected: the phase ends no
  /// sooner.
  __device__ __forceinline__ void send_into(int stage, int turn) const {
    if (turn >= turns) return;
    const int first = (place + turn * units) * plan.tile_rows;
    const int rows = kBlock ? 1 : min(plan.rows - first, plan.tile_rows);
    if constexpr (kStaged) {
      fetch_stats(stage, first, rows);
      arrive_with_copies(landed_in(stage));
    }
    if constexpr (kOdd) {
      send_covering(stage, rows);
      return;
    }
    if (lane >= kSenders) return;
    const RingSender s = sender();
    const uint32_t to = s.to + static_cast<uint32_t>(stage) * plan.stage_bytes;
    if (lane == 0) landed_in(stage).expect(s.all_bytes * static_cast<uint32_t>(rows));
    if (s.bytes == 0) return;
    if (kBlock || plan.whole) {
      bulk_copy(to, s.next, s.bytes * static_cast<uint32_t>(rows), landed_in(stage));
    } else {
      const RingRows& t = plan.in[lane];
      const auto pitch = static_cast<uint32_t>(plan.pitch * t.element);
      for (int r = 0; r < rows; ++r)
        bulk_copy(to + static_cast<uint32_t>(r) * pitch, s.next + int64_t{r} * t.row_bytes, s.bytes,
                  landed_in(stage));
    }
    advance(s);
  }
  /// The same of odd rows, each in the 16-byte pieces that cover it.
  __device__ __forceinline__ void send_covering(int stage, int rows) const {
    RingSender s{};
    if (lane < kSenders) s = sender();
    const RingRows& t = plan.in[lane & (kSenders - 1)];
    const bool sends = s.bytes > 0;
    uint32_t bytes = 0;
    if (sends)
      for (int r = 0; r < rows; ++r)
        bytes += covering(skew_of(s.next + int64_t{r} * t.row_bytes), s.bytes);
    bytes = __reduce_add_sync(0xffffffffu, bytes);
    if (lane == 0) landed_in(stage).expect(bytes);
    if (!sends) return;
    const uint32_t to = s.to + static_cast<uint32_t>(stage) * plan.stage_bytes;
    for (int r = 0; r < rows; ++r) {
      const unsigned char* from = s.next + int64_t{r} * t.row_bytes;
      const uint32_t skew = skew_of(from);
      bulk_copy(to + static_cast<uint32_t>(r * plan.pitch * t.element), from - skew,
                covering(skew, s.bytes), landed_in(stage));
    }
    advance(s);
  }
  /// Moves an odd row, of which this lane's part is at element `at` of the stage, to where it would
  /// be if it had begun on 16 bytes, with zeros after its end.
  __device__ __forceinline__ void straighten(uint32_t stage, int at, int row, bool real) const {
#pragma unroll 1
    for (const RingRows& t : plan.in) {
      if (!t.data) continue;
      unsigned char* mine = memory + (stage - shared_address(memory)) + t.at + at * int{sizeof(T)};
      const uint32_t skew = skew_of(t.data + int64_t{row} * t.row_bytes);
      uint32_t words[kVecs][4];
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
        if (!real || !exists(v)) continue;
        read_skewed(mine + of(v) * int{sizeof(T)}, skew, words[v]);
        if (count(v) < kWidth) keep_first<T>(words[v], count(v));  // of one lane of a row at most
      }
      __syncwarp();
#pragma unroll
      for (int v = 0; v < kVecs; ++v)
        if (real && exists(v))
          *reinterpret_cast<uint4*>(mine + of(v) * int{sizeof(T)}) =
              uint4{words[v][0], words[v][1], words[v][2], words[v][3]};
    }
  }
  /// Writes an odd row's results from the stage, where they took the places of h, dy and z.
  __device__ __forceinline__ void deliver(uint32_t stage, int at, int row, bool real) const {
    __syncwarp();
    if (real) {
      const int n = kBlock ? min(plan.size - chunk * kChunk, kChunk) : plan.size;
      const RingRows* to[] = {&plan.dx, &plan.dresidual, &plan.dz};
#pragma unroll
      for (int i = 0; i < 3; ++i)
        if (to[i]->data)
          write_row(memory + (stage - shared_address(memory)) + plan.in[i].at +
                        (at - lane_in * kWidth) * int{sizeof(T)},
                    out<T>(*to[i], row) - lane_in * kWidth, n, lane_in, lanes);
    }
    copies_follow_writes();
  }
  /// Of a row, asked for while the row before is at work; nothing where they come otherwise.
  __device__ __forceinline__ Stats<Acc> ask_stats(int row) const {
    Stats<Acc> s;
    if (kKeepsStats || kStaged || row >= plan.rows || group >= plan.groups) return s;
    const int at = row * plan.groups + group;
    if (kFull && k.mean) s.mean = k.mean.at<Acc>(at);
    if (kFull && k.mean_rest) s.mean_rest = k.mean_rest.at<Acc>(at);
    s.rstd = k.rstd.at<Acc>(at);
    return s;
  }
  /// What was asked for, or has come with the rows: those of an item, a row and group, of a tile.
  __device__ __forceinline__ Stats<Acc> stats(const Stats<Acc>& asked, int stage, int item) const {
    return kStaged ? read_stats(stats_in(stage, item)) : asked;
  }
  /// The same of a turn's row.
  __device__ __forceinline__ Stats<Acc> stats(const Stats<Acc>& asked, int turn) const {
    return kKeepsStats ? read_stats(kept_stats(turn)) : asked;
  }
  /// rstd, mean and its rest, in 16 bytes.
  static __device__ __forceinline__ Stats<Acc> read_stats(uint32_t at) {
    const uint4 words = read_shared(at);
    Stats<Acc> s;
    s.rstd = __uint_as_float(words.x), s.mean = __uint_as_float(words.y);
    s.mean_rest = __uint_as_float(words.z);
    return s;
  }
  /// Of an item of a tile in a stage.
  __device__ __forceinline__ uint32_t stats_in(int stage, int item) const {
    return ring + static_cast<uint32_t>(stage) * plan.stage_bytes + plan.stats_in_stage +
           kStatsBytes * static_cast<uint32_t>(item);
  }
  __device__ __forceinline__ uint32_t kept_stats(int turn) const {
    return control + kStatsAt + kStatsBytes * (static_cast<uint32_t>(turn) & (kStatsKept - 1));
  }
  __device__ __forceinline__ void fetch(uint32_t to, int64_t at) const {
    copy_4(to, k.rstd.as<Acc>() + at);
    if (k.mean) copy_4(to + 4, k.mean.as<Acc>() + at);
    if (k.mean_rest) copy_4(to + 8, k.mean_rest.as<Acc>() + at);
  }
  /// Of a tile.
  __device__ __forceinline__ void fetch_stats(int stage, int first_row, int rows) const {
    const int log_set = 31 - __clz(plan.set_groups), first = group - (plan.by_rows ? 0 : team);
#pragma unroll 1
    for (int item = lane; item < rows << log_set; item += kWarpSize) {
      const int of_set = first + (item & (plan.set_groups - 1));
      if (of_set < plan.groups)
        fetch(stats_in(stage, item), int64_t{first_row + (item >> log_set)} * plan.groups + of_set);
    }
  }
  /// Of the rows of half the turns that are kept.
  __device__ __forceinline__ void fetch_stats(int first_turn) const {
    const int turn = first_turn + lane;
    if (lane < kStatsKept / 2 && turn < turns)
      fetch(kept_stats(turn), int64_t{place + turn * units} * plan.groups + group);
  }
  /// One half is used while the other comes. At a half's second turn the last row of the other is
  /// finished.
  __device__ __forceinline__ void keep_stats(int turn) const {
    const int in_half = turn & (kStatsKept / 2 - 1);
    if (in_half > 1) return;
    if (in_half == 1) return fetch_stats(turn - 1 + kStatsKept / 2);
    wait_for_all_copies();
    __syncwarp();
  }
  /// What is not fetched is 0.
  __device__ __forceinline__ void clear_stats() const {
    const uint4 zeros{0, 0, 0, 0};
    if constexpr (kKeepsStats)
      for (int turn = lane; turn < kStatsKept; turn += kWarpSize)
        write_shared(kept_stats(turn), zeros);
    else
      for (int stage = 0; stage < plan.stages; ++stage)
        for (int item = lane; item < plan.tile_items; item += kWarpSize)
          write_shared(stats_in(stage, item), zeros);
    __syncwarp();
  }
  /// `at`: an element of the stage, of which this is vector v of this lane.
  template <class E>
  __device__ __forceinline__ void read_stage(uint32_t stage, int which, int at,
                                             Acc (&to)[kWidth]) const {
    const uint32_t from = place_of(stage, which, at * int{sizeof(E)});
    if constexpr (std::is_same_v<E, T>)
      unpack<T>(read_shared(from), to);
    else
      read_floats(from, to);
  }
  __device__ __forceinline__ uint32_t place_of(uint32_t stage, int which, int byte) const {
    // Of chunks the compiler is to know it.
    constexpr uint32_t kH = kChunk * sizeof(H), kT = kChunk * sizeof(T);
    constexpr uint32_t kAt[] = {0, kH, kH + kT, kH + (kGated ? 2 : 1) * kT};
    const uint32_t first = kBlock && !kOdd ? kAt[which] : plan.in[which].at;
    return stage + static_cast<uint32_t>(byte) + first;
  }
  /// Where this lane's part of a row begins.
  template <class E>
  __device__ __forceinline__ E* out(const RingRows& t, int row) const {
    const auto first = static_cast<uint32_t>(group * plan.size + column);
    return reinterpret_cast<E*>(t.data + int64_t{row} * t.row_bytes) + first;
  }

  /// 16 bytes of results of vector v; those of odd rows wait in the stage for deliver().
  __device__ __forceinline__ void put(bool writes, uint32_t stage, int which, int at, int v, T* to,
                                      const Acc (&value)[kWidth]) const {
    const uint4 words = packed<T>(value);  // before it is asked, or a branch jumps over it
    if (!writes) return;
    if constexpr (kOdd)
      write_shared(place_of(stage, which, (at + of(v)) * int{sizeof(T)}), words);
    else
      *reinterpret_cast<uint4*>(to + of(v)) = words;
  }

  // ---- What is computed

  using Terms = BackwardTerms<T, kGate, kFull>;
  __device__ __forceinline__ void read(uint32_t stage, int at, int v, const Stats<Acc>& s,
                                       Terms& r) const {
    read_stage<H>(stage, 0, at + of(v), r.h);
    read_stage<T>(stage, 1, at + of(v), r.dy);
    if constexpr (kGated) {
      Acc z[kWidth];
      read_stage<T>(stage, 2, at + of(v), z);
      short_gates_of<sizeof(T) == 2>(k.options.activation, plan.beta, z, r.gate);
    }
    r.form(gain[v], s);
  }
  /// Σ g ⊙ x̂ and Σ g of this lane, and its share of dw and db.
  __device__ __forceinline__ float2 begin(uint32_t stage, int at, const Stats<Acc>& s,
                                          Terms (&held)[kHolds ? kVecs : 1]) {
    LaneSum<Acc> gx, g;
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      if (!kDense && !exists(v)) continue;
      Terms r_here;
      Terms& r = kHolds ? held[kHolds ? v : 0] : r_here;
      read(stage, at, v, s, r);
      r.add_to(gx, g, dw[v], db[kFull ? v : 0]);
    }
    return {gx.total(), kFull ? g.total() : 0.0f};
  }
  /// Writes dx and the like of this lane's part of a row.
  __device__ __forceinline__ void finish(uint32_t stage, int at, const Stats<Acc>& s, int row,
                                         float2 mean, Terms (&held)[kHolds ? kVecs : 1]) const {
    T* const dx = out<T>(plan.dx, row);
    T* const dz = out<T>(plan.dz, row);
    const unsigned wants = plan.wants;
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      if (!kDense && !exists(v)) continue;
      Terms r_here;
      Terms& r = kHolds ? held[kHolds ? v : 0] : r_here;
      if constexpr (!kHolds) {
        read(stage, at, v, s, r);
      } else if constexpr (!kHoldsAll) {
        read_stage<T>(stage, 1, at + of(v), r.dy);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) r.g[e] = mul(gain[v][e], r.dy[e]);
      }
      Acc du[kWidth], other[kWidth];
      r.finish(s, mean, du, other);
      if constexpr (kGateLast)
        r.finish_gate(
            gain[v], bool(k.b), [&](float(&b)[kWidth]) { read_bias(v, b); }, other);
      const bool writes = !kDense || exists(v);
      if constexpr (kGated) put((wants & kWantsDz) && writes, stage, 2, at, v, dz, other);
      if (wants & kHasDh) {
        read_stage<H>(stage, 3, at + of(v), other);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) du[e] = add(du[e], other[e]);
      }
      if ((wants & kWantsDresidual) && writes) {
        const int here = kept(row);  // or its place is worked out where nobody wants it
        if (!kOdd && (kWide || sizeof(T) == 4 || (wants & kWidens)))
          write_whole(out<Acc>(plan.dresidual, here) + of(v), du);
        else
          put(true, stage, 1, at, v, out<T>(plan.dresidual, here), du);
      }
      put((wants & kWantsDx) && writes, stage, 0, at, v, dx, du);
    }
  }
  /// Both sums over the lanes of a group.
  __device__ __forceinline__ float2 over_lanes(float2 s) const {
    if constexpr (!kFull) return {sum_of<kWarpSize>(s.x, lanes), 0};
    if (lanes == 1) return s;
    const float sum = shared_sum(s, lanes), other = from_lane(sum, lanes / 2);
    return (lane & (lanes / 2)) != 0 ? float2{other, sum} : float2{sum, other};
  }
  static __device__ __forceinline__ float from_lane(float v, int apart) {
    return __shfl_xor_sync(0xffffffffu, v, apart);
  }
  /// lanes_sum, which looks at each step whether it is one, where those are not kMost.
  template <int kMost>
  static __device__ __forceinline__ float sum_of(float v, int of_lanes) {
    if (of_lanes < kMost) return lanes_sum(v, of_lanes);
#pragma unroll
    for (int step = kMost / 2; step > 0; step /= 2) v = add(v, from_lane(v, step));
    return v;
  }
  /// The first sum in the first half of a group's lanes, the second in the others: they share the
  /// steps after the first, since a shuffle takes the place of four additions.
  __device__ __forceinline__ float shared_sum(float2 s, int of_lanes) const {
    const int half = of_lanes / 2;
    const bool second = (lane & half) != 0;
    return sum_of<kWarpSize / 2>(add(second ? s.y : s.x, from_lane(second ? s.x : s.y, half)),
                                 half);
  }
  /// Their means: of g only where the norm is centred.
  __device__ __forceinline__ float2 means_of(float2 sums) const {
    return {mul(sums.x, plan.inverse), kFull ? mul(sums.y, plan.inverse_of_g) : Acc(0)};
  }

  // ---- Turns

  /// What is not to be done at every turn, behind one question: it is at the first two turns of
  /// some power of two.
  __device__ __forceinline__ void at_times(int n) {
    if ((n & often) > 1) return;
    if constexpr (kKeepsStats) keep_stats(n);
    keep_pace(n);
    put_aside(n);
  }
  /// This lane's place among the sums put aside.
  __device__ __forceinline__ Acc* aside_of(int which, int v) const {
    const int of_block = static_cast<int>(blockIdx.x) * plan.warps + warp;
    return aside + (int64_t{of_block} * (kFull ? 2 : 1) + which) * kChunk +
           (v * kWarpSize + lane) * kWidth;
  }
  /// Adds what was put aside before turn n.
  __device__ __forceinline__ void add_aside(int n) {
    if (n <= plan.aside_turns) return;
#pragma unroll
    for (int which = 0; which < (kFull ? 2 : 1); ++which)
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
        Acc(&sum)[kWidth] = which == 0 ? dw[v] : db[kFull ? v : 0];
        Acc before[kWidth];
        read_whole(static_cast<const Acc*>(aside_of(which, v)), before);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) sum[e] = add(before[e], sum[e]);
      }
  }
  /// Sums of very many terms lose digits: after every kAsideRows rows they are added to sums of
  /// sums in memory, and start from 0 again.
  __device__ __forceinline__ void put_aside(int n) {
    if (!aside || n == 0 || (n & plan.aside_mask) != 0) return;
    add_aside(n);
#pragma unroll
    for (int which = 0; which < (kFull ? 2 : 1); ++which)
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
        Acc(&sum)[kWidth] = which == 0 ? dw[v] : db[kFull ? v : 0];
        write_whole(aside_of(which, v), sum);
#pragma unroll
        for (Acc& e : sum) e = 0;
      }
  }

  unsigned seen = 0;  // of progress
  int patience = 32;  // how often a leader looks again
  /// A leader's count is on its way for a turn before it is looked at.
  __device__ __forceinline__ void keep_pace(int n) {
    if (pace.times == 0 || chunk != 0 || lane != 0) return;
    const int phase = n & pace.turn_mask, time = n >> pace.log_turns;
    if (phase > 1 || time == 0 || time > pace.times) return;
    if (unit > 0) {
      if (phase == 1 && time < pace.times) follow(time);
    } else if (time == pace.times) {  // after the last none looks, since it may be cleared
      if (phase == 0) seen = atomicAdd(pace.progress, 1u);
    } else if (phase == 0) {
      atomicAdd(pace.progress, 1u);  // not its answer: the compiler would wait for that here
      asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(pace.progress));
    } else {
      const int needed = time * pace.leaders - pace.lead;
      int left = patience;
      while (static_cast<int>(seen) < needed && left-- > 0)
        seen = *reinterpret_cast<volatile unsigned*>(pace.progress);
      if (left < 0) patience = 0;
      *led() = time;
    }
  }
  /// The last time that the block's leader went on.
  __device__ __forceinline__ volatile int* led() const {
    return reinterpret_cast<volatile int*>(memory + plan.led_at);
  }
  __device__ __forceinline__ void follow(int time) {
    constexpr int kLooks = 64;  // at shared memory, in the time of one at the leaders' word
    int left = patience * kLooks;
    while (*led() < time && left-- > 0) {
    }
    if (left < 0) patience = 0;
  }
  /// Who counted last clears the word.
  __device__ __forceinline__ void end_pace() const {
    if (pace.times > 0 && chunk == 0 && unit == 0 && lane == 0 && turns > 0 &&
        seen + 1 == static_cast<unsigned>(pace.times * pace.leaders))
      *pace.progress = 0;
  }

  /// Rows of one warp: a row is begun and finished at once.
  __device__ __forceinline__ void run_alone() {
    const int shift = plan.by_rows ? team : 0;
    int stage = 0;
    uint32_t parity = 0;
    Stats<Acc> next = ask_stats(place * plan.tile_rows + shift);
    for (int n = 0; n < turns; ++n) {
      at_times(n);
      landed_in(stage).wait(parity);
      const uint32_t from = ring + static_cast<uint32_t>(stage) * plan.stage_bytes;
      const int first = (place + n * units) * plan.tile_rows + shift;
      int at = team * (plan.by_rows ? plan.pitch : plan.size) + lane_in * kWidth;
      for (int r = 0; r < plan.tile_rows && first - shift + r < plan.rows; r += plan.step_rows) {
        const int row = first + r, after = r + plan.step_rows;
        const bool real = row < plan.rows && group < plan.groups;
        const Stats<Acc> s = stats(next, stage, r * plan.set_groups + team);
        next = ask_stats(first + (after < plan.tile_rows ? after : units * plan.tile_rows));
        if constexpr (kOdd) straighten(from, at, row, real);
        Terms held[kHolds ? kVecs : 1];
        const float2 mine = real ? begin(from, at, s, held) : float2{0, 0};
        const float2 mean = means_of(over_lanes(mine));
        if (real) finish(from, at, s, row, mean, held);
        if constexpr (kOdd) deliver(from, at, row, real);
        at += plan.step_rows * plan.pitch;
      }
      __syncwarp();
      send_into(stage, n + plan.stages);
      if (++stage == plan.stages) stage = 0, parity ^= 1;
    }
  }

  /// Rows of many warps, whose sums meet in the unit's slots.
  __device__ __forceinline__ void run_together() {
    struct Row {
      int stage = 0;
      Stats<Acc> asked;
    };
    const int at = lane_in * kWidth;
    uint32_t parity = 0;
    Terms held[kHolds ? kVecs : 1];
    Row next{0, ask_stats(place)}, before;
    for (int n = 0; n < turns + plan.behind; ++n) {
      const Row now = next;
      if (n < turns) {
        next.asked = ask_stats(place + (n + 1) * units);
        at_times(n);
        landed_in(now.stage).wait(parity);
        const uint32_t from = ring + static_cast<uint32_t>(now.stage) * plan.stage_bytes;
        if constexpr (kOdd) straighten(from, at, place + n * units, true);
        publish(begin(from, at, stats(now.asked, n), held), n);
        if (++next.stage == plan.stages) next.stage = 0, parity ^= 1;
      }
      const int n_ended = n - plan.behind;
      if (n_ended >= 0) {
        const float2 mean = means_of(collect(n_ended));
        Row ended = now;
        if (plan.behind) ended = before;
        const int row = place + n_ended * units;
        const uint32_t from = ring + static_cast<uint32_t>(ended.stage) * plan.stage_bytes;
        finish(from, at, stats(ended.asked, n_ended), row, mean, held);
        if constexpr (kOdd) deliver(from, at, row, true);
        __syncwarp();
        send_into(ended.stage, n_ended + plan.stages);
      }
      before = now;
    }
  }
  __device__ __forceinline__ BarrierAt arrived_in(int slot) const {
    return {meeting + static_cast<uint32_t>(slot) * 8};
  }
  using Sums = std::conditional_t<kFull, float2, float>;  // of a chunk, for its row's other warps
  __device__ __forceinline__ uint32_t sums_in(int slot, int of_chunk) const {
    return meeting + kSlots * 8 +
           static_cast<uint32_t>(slot * plan.slot_chunks + of_chunk) * uint32_t{sizeof(Sums)};
  }
  /// Sums the lanes' and leaves them for the row's other warps: the second sum, where there is one,
  /// is the last lanes' to bring.
  __device__ __forceinline__ void publish(float2 of_lane, int turn) const {
    constexpr int kBringers = kFull ? kWarpSize / 2 : kWarpSize;
    const int slot = turn & (kSlots - 1), bringer = lane & (kBringers - 1);
    const float mine =
        kFull ? shared_sum(of_lane, kWarpSize) : sum_of<kWarpSize>(of_lane.x, kWarpSize);
    const uint32_t at = sums_in(slot, chunk) + (lane == bringer ? 0 : uint32_t{sizeof(float)});
    if (plan.cluster > 1) {
      if (leads && lane == 0)
        arrived_in(slot).expect(static_cast<uint32_t>(plan.order.chunks) * uint32_t{sizeof(Sums)});
      if (bringer < plan.ranks)
        send_counted(at, mine, arrived_in(slot), static_cast<uint32_t>(bringer));
    } else if (bringer == 0) {
      write_shared(at, mine);
      arrived_in(slot).arrive();
    }
  }
  /// The chunks' sums as chunks_sum has them; of few chunks each lane adds them for itself in that
  /// order, which is fewer instructions and less waiting than butterflies.
  __device__ __forceinline__ float2 collect(int turn) const {
    const int slot = turn & (kSlots - 1), chunks = plan.order.chunks;
    arrived_in(slot).wait(static_cast<uint32_t>(turn) / kSlots & 1);
    if (chunks <= 8) return few_chunks<8>(sums_in(slot, 0));
    if (chunks <= 16) return few_chunks<16>(sums_in(slot, 0));
    float2 s = sums_of(slot, lane);
    // Four are asked for before one is added.
#pragma unroll 1
    for (int c = lane + kWarpSize; c - lane < chunks; c += 4 * kWarpSize) {
      float2 others[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) others[i] = sums_of(slot, c + i * kWarpSize);
#pragma unroll
      for (const float2& other : others) s.x = add(s.x, other.x), s.y = add(s.y, other.y);
    }
    return over_lanes(s);
  }
  /// Zeros after the last chunk.
  __device__ __forceinline__ float2 sums_of(int slot, int of_chunk) const {
    float2 s{0, 0};
    if (of_chunk >= plan.order.chunks) return s;
    const uint32_t at = sums_in(slot, of_chunk);
    if constexpr (kFull)
      s = read_shared_pair(at);
    else
      s.x = read_shared_float(at);
    return s;
  }
  /// A butterfly begins with the sums farthest apart, so those that lie in 16 bytes meet last.
  template <int kCount>
  __device__ __forceinline__ float2 few_chunks(uint32_t from) const {
    constexpr int kBytes = kCount * int{sizeof(Sums)};
    const float4 s = strided_sum<kBytes / 16>(from);
    if constexpr (kFull) return {add(add(s.x, s.z), 0.0f), add(add(s.y, s.w), 0.0f)};
    return {add(add(add(s.x, s.z), add(s.y, s.w)), 0.0f), 0};
  }
  /// Of so many times 16 bytes, each so far from the one before.
  template <int kCount, uint32_t kStride = 16>
  static __device__ __forceinline__ float4 strided_sum(uint32_t from) {
    if constexpr (kCount == 1) {
      const uint4 v = read_shared(from);
      return {__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z),
              __uint_as_float(v.w)};
    } else {
      const float4 a = strided_sum<kCount / 2, 2 * kStride>(from);
      const float4 b = strided_sum<kCount / 2, 2 * kStride>(from + kStride);
      return {add(a.x, b.x), add(a.y, b.y), add(a.z, b.z), add(a.w, b.w)};
    }
  }

  /// Its sums for the weights. Those of units that keep to groups of their own are rows of their
  /// own; others are added here, one unit after another, where the ring was. Not where the barriers
  /// are, which are the hardware's until the block ends: where the GPU was taken from a block for a
  /// time, for another program, it put them back over the sums.
  __device__ __forceinline__ void leave_sums(const WeightSums<Acc>& sums, int rank) {
    if (aside) add_aside(turns);
    const bool own = sums.n != plan.size, direct = own || (kBlock && plan.units == 1);
    const int worker = static_cast<int>(blockIdx.x) / plan.cluster;
    const int slice = kBlock ? plan.unit_warps * kChunk : plan.order.vecs * lanes * kWidth;
    const int slice_first = kBlock ? rank * slice : 0;
    const int teams = kBlock ? plan.units : plan.warps * plan.at_once;
    auto* shared = reinterpret_cast<Acc*>(memory + plan.ring_at);
    Acc* mine =
        shared + (kBlock ? unit : warp * plan.at_once + team) * slice + column - slice_first;
#pragma unroll
    for (int which = 0; which < (kFull ? 2 : 1); ++which) {
      if (sums.place[which] < 0) continue;
      if (direct) mine = sums.of(own ? place : worker, which) + weight_place(sums.n);
      const bool writes = !own || (group < plan.groups && place < units);
#pragma unroll
      for (int v = 0; v < kVecs; ++v)
        if (exists(v) && writes) write_whole(mine + of(v), which == 0 ? dw[v] : db[kFull ? v : 0]);
      if (direct) continue;
      __syncthreads();
      Acc* to = sums.of(worker, which) + slice_first;
      const int end = min(slice, plan.size - slice_first);
      for (int c = static_cast<int>(threadIdx.x); c < end; c += static_cast<int>(blockDim.x)) {
        Acc sum = shared[c];
        for (int t = 1; t < teams; ++t) sum = add(sum, shared[t * slice + c]);
        to[c] = sum;
      }
      __syncthreads();
    }
  }
};

/// The plain members, each tensor read once. Blocks live for the whole call. Each warp keeps a ring
/// of stages in shared memory, into which the bulk copy engine brings its part of h, dy, z and dh;
/// it reads a row from there, forms its two sums and adds to the weights' gradients in registers,
/// sends the sums to the row's other warps, be they in other blocks of the cluster, and only then
/// finishes the row before and sends for another in its place. No barrier of a block or cluster in
/// the loop.
///   Four slots of sums suffice: who sends those of row n has finished row n − 2, for which all
///   others had sent theirs, and so had read those of row n − 4.
///   Blocks keep together by Pace.
///   bytes  rows · D · (h, dy, dx and where they are: z, dz, dh, dresidual), and a row of sums a
///   block
///   bound  memory
template <class T, GateOrder kGate, bool kFull, bool kWide, RingUnit kUnit, bool kOdd, bool kHolds>
__global__ void __launch_bounds__(most_ring_warps(kUnit, kOdd, kGate, kFull) * kWarpSize, 1)
    norm_backward_ring_kernel(const __grid_constant__ NormBackwardArgs k,
                              const __grid_constant__ RingPlan plan,
                              const __grid_constant__ Pace pace,
                              const __grid_constant__ WeightSums<float> sums, float* aside) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // older ones are spared the compilation
  extern __shared__ __align__(128) unsigned char memory[];
  constexpr bool kBlock = kUnit == RingUnit::chunk;
  const bool clustered = kBlock && plan.cluster > 1;
  const int rank = clustered ? static_cast<int>(cluster_rank()) : 0;
  wait_for_previous_kernel();  // and norm_fold_kernel may come and wait
  RingWarp<T, kGate, kFull, kWide, kUnit, kOdd, kHolds> warp(k, plan, pace, aside, memory, rank);
  if (threadIdx.x == 0) *warp.led() = 0;
  if (kBlock && threadIdx.x == 0) {
    for (int unit = 0; unit < plan.units; ++unit)
      for (uint32_t slot = 0; slot < kSlots; ++slot)
        BarrierAt{shared_address(memory) + plan.units_at +
                  static_cast<uint32_t>(unit) * plan.unit_bytes + 8 * slot}
            .init(clustered ? 1 : plan.order.chunks * (kFull ? 2 : 1));  // by its bringers
    for (int unit = 0; unit < plan.units && plan.slot_chunks > plan.order.chunks; ++unit)
      for (uint32_t byte = kSlots * 8; byte < plan.unit_bytes; byte += 16)
        write_shared(shared_address(memory) + plan.units_at +
                         static_cast<uint32_t>(unit) * plan.unit_bytes + byte,
                     uint4{0, 0, 0, 0});
    publish_barriers();
  }
  warp.start();
  __syncthreads();
  if (clustered) cluster_sync();
  if constexpr (kBlock)
    warp.run_together();
  else
    warp.run_alone();
  warp.end_pace();
  __syncthreads();
  if (clustered) cluster_sync();  // nobody leaves while others may write to it
  warp.leave_sums(sums, rank);
#endif
}

template <class T>
bool can_ring(const NormBackwardArgs& k) {
  const NormOptions& o = k.options;
  const int64_t size = o.group == 0 ? k.dy.cols : o.group;
  const auto weight = [](const ConstVec& w) {
    return !w || w.dtype == dtype_of<T> || w.dtype == DType::float32;
  };
  constexpr int64_t kMost = int64_t{1} << 30;  // rows, and bytes of one, are counted in int
  const auto fits = [&](const auto& t) { return t.row_stride * size_of(t.dtype) <= kMost; };
  // Where eps is so small that rstd may overflow, rows are looked at one by one.
  return o.activation != GateActivation::gelu && o.casting == Casting::wide && o.dropout == 0 &&
         !o.precise && o.eps > 1e-37 && k.h && !k.row_scale && !k.w2 && !k.dy2 && !k.drow_scale &&
         !k.mean_gx && !k.g_norm && !k.du_norm && k.dy.dtype == dtype_of<T> && weight(k.w) &&
         weight(k.b) && k.dy.rows > 0 && k.dy.rows * (k.dy.cols / size) <= kMost && fits(k.h) &&
         fits(k.dy) && fits(k.z) && fits(k.dh) && fits(k.dx) && fits(k.dz) && fits(k.dresidual);
}

/// Runs it, or says that the sizes do not fit.
template <class T, GateOrder kGate>
bool backward_ring(const Cuda& on, const NormBackwardArgs& args) {
  const int64_t size = args.options.group == 0 ? args.dy.cols : args.options.group;
  WeightSums<float> sums(args);
  const int64_t w_length = args.w ? args.w.n : args.b ? args.b.n : sums.count > 0 ? sums.n : size;
  const auto dense = [](const auto& t) { return !t || t.row_stride == t.cols; };
  const bool flat = w_length == size && dense(args.h) && dense(args.dy) && dense(args.z) &&
                    dense(args.dh) && dense(args.dx) && dense(args.dz) && dense(args.dresidual);
  const NormBackwardArgs k = flat ? flattened(args, size) : args;
  const RowOrder order(size, kLaneWidth<T>);
  const bool full = k.options.kind == NormKind::layer || k.db;
  const bool wide = k.h.dtype != dtype_of<T>;
  const bool odd = !is_even_all<T>(k, size);
  const auto run =
      [&]<bool kFull, bool kWide, RingUnit kUnit, bool kOdd, bool kHolds>(const RingPlan& plan) {
        const auto kernel = norm_backward_ring_kernel<T, kGate, kFull, kWide, kUnit, kOdd, kHolds>;
        const int threads = plan.warps * kWarpSize;
        const size_t ring = static_cast<size_t>(plan.warps * plan.stages) * plan.stage_bytes;
        const size_t sums_bytes = static_cast<size_t>(plan.warps) * kChunk * sizeof(float);
        const size_t shared = plan.ring_at + std::max(ring, sums_bytes);
        int64_t workers = k.options.portable
                              ? 128 / plan.cluster
                              : resident_clusters(on, reinterpret_cast<const void*>(kernel),
                                                  threads, shared, plan.cluster);
        const int64_t tiles = ceil_div(int64_t{plan.rows}, int64_t{plan.tile_rows}) * plan.bound;
        workers = std::min(workers, ceil_div(tiles, int64_t{plan.units}));
        const int64_t units = workers * plan.units / plan.bound;
        if (units < 1) return false;
        const int64_t places = sums.n == size ? workers : units;
        const DeviceScratch<float> scratch(on, std::max<int64_t>(1, places * sums.worker_size()));
        sums.data = scratch.data();
        const int64_t turns = tiles / plan.bound / units;  // of a unit, or one more
        const bool many = sums.count > 0 && turns >= plan.aside_turns;
        const int64_t lanes_sums = workers * plan.cluster * plan.warps * kChunk * (kFull ? 2 : 1);
        const DeviceScratch<float> aside(on, many ? lanes_sums : 1);
        launch(on,
               {.grid = dim3(static_cast<unsigned>(workers * plan.cluster)),
                .block = dim3(static_cast<unsigned>(threads)),
                .shared = shared,
                .cluster = static_cast<unsigned>(plan.cluster),
                .overlap = true},
               kernel, k, plan, Pace(on, plan, units * plan.bound, turns), sums,
               many ? aside.data() : nullptr);
        fold(on, sums, places, k);
        return true;
      };
  const auto go = [&]<bool kFull, bool kWide, RingUnit kUnit, bool kOdd>() {
    // An H200's memory is 6144 bits wide, an H100's 5120.
    const bool fast_memory = detail::properties(on.device).memoryBusWidth > 5120;
    const RingPlan plan = ring_plan(k, order, odd, fast_memory);
    if (plan.stages == 0) return false;
    constexpr bool kRows = kUnit != RingUnit::chunk;
    constexpr bool kCanHold = sizeof(T) == 2 && !kOdd && (kRows || !(kWide || kFull)) &&
                              (kGate == GateOrder::no_gate || kUnit == RingUnit::short_rows);
    if constexpr (kCanHold)
      if (kRows || plan.holds)
        return run.template operator()<kFull, kWide, kUnit, kOdd, true>(plan);
    if constexpr (!kCanHold || !kRows)
      return run.template operator()<kFull, kWide, kUnit, kOdd, false>(plan);
    return false;
  };
  const auto sized = [&]<bool kFull, bool kWide, bool kOdd = false>() {
    switch (ring_unit(order, odd, sizeof(T) == 2)) {
      case RingUnit::short_rows:
        if constexpr (!kOdd && sizeof(T) == 2)
          return go.template operator()<kFull, kWide, RingUnit::short_rows, false>();
        return false;
      case RingUnit::row:
        return go.template operator()<kFull, kWide, RingUnit::row, kOdd>();
      case RingUnit::chunk:
        return go.template operator()<kFull, kWide, RingUnit::chunk, kOdd>();
    }
    return false;
  };
  if (odd) {
    const bool narrow = !wide && (!k.dresidual || k.dresidual.dtype == dtype_of<T>);
    if (!narrow || k.dy.cols != size) return false;
    return full ? sized.template operator()<true, false, true>()
                : sized.template operator()<false, false, true>();
  }
  if constexpr (kGate == GateOrder::no_gate && sizeof(T) == 2)
    if (wide)
      return full ? sized.template operator()<true, true>()
                  : sized.template operator()<false, true>();
  if (wide) return false;
  return full ? sized.template operator()<true, false>()
              : sized.template operator()<false, false>();
}

}  // namespace norma::norm_cuda
