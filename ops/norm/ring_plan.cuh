#pragma once

#include <algorithm>

#include "norma/core/cuda/launch.cuh"
#include "norma/ops/norm/kernels.h"
#include "norma/ops/norm/row.cuh"

namespace norma::norm_cuda {

inline constexpr int kSlots =
    4;  ///< a power of two, sums on their way: see norm_backward_ring_kernel
inline constexpr size_t kRingMemory = 224 << 10;
/// Rows whose terms a lane adds to one sum for a weight. A sum of n random terms errs by some
/// √n / 5 roundings of its size, and the largest of 4096 by four times that.
inline constexpr int kAsideRows = 256;

/// Rows that are read into a stage, or written.
struct RingRows {
  unsigned char* data = nullptr;
  int row_bytes = 0;  ///< from one to the next
  int element = 0;    ///< bytes
  uint32_t at = 0;    ///< in a stage
};

/// What a lane sends a tensor's part of the next tile by.
struct alignas(16) RingSender {
  const unsigned char* next;
  int64_t step;
  uint32_t bytes, all_bytes;  ///< a row's, of this tensor and of all
  uint32_t to, unused = 0;    ///< in the first stage
};
inline constexpr int kMostStages = 8;
/// What a warp keeps in shared memory, since registers are scarce: its stages' barriers, its
/// senders for four tensors, of chunks with a mean the statistics of kStatsKept turns; and then,
/// where a gate needs it, its part of the bias. A unit of many warps keeps kSlots barriers, and as
/// many times each chunk's sums.
inline constexpr int kSenders = 4, kStatsKept = kWarpSize;
inline constexpr uint32_t kStatsBytes = 16;  ///< of a row
inline constexpr uint32_t kSendersAt = kMostStages * 8,
                          kStatsAt = kSendersAt + kSenders * uint32_t{sizeof(RingSender)};
constexpr uint32_t control_bytes(bool keeps_stats) {
  return kStatsAt + (keeps_stats ? kStatsKept * kStatsBytes : 0);
}

enum : unsigned { kWantsDx = 1, kWantsDresidual = 2, kWidens = 4, kWantsDz = 8, kHasDh = 16 };

/// How norm_backward_ring_kernel runs. A unit takes a group at a time: the warps of a block or
/// cluster, each with a chunk; or it is one warp, which takes 32 / order.lanes groups at a time.
struct RingPlan {
  RowOrder order;
  int size = 0, rows = 0, groups = 1;
  int bound = 1;        ///< sets of groups, of which a unit keeps to one
  bool by_rows = true;  ///< groups of one warp are of different rows, not of one
  bool whole = false;   ///< a tile lies in one piece
  int cluster = 1;      ///< blocks a unit
  int ranks = 1;        ///< of those, with a chunk
  int warps = 1, units = 1, unit_warps = 1;  ///< of a block, and of a unit in it
  int at_once = 1;                           ///< groups of a warp
  int step_rows = 1, set_groups = 1;         ///< what these are: rows, or groups of a set
  int tile_rows = 1, stages = 2;             ///< a stage holds a tile
  int pitch = 0;                             ///< elements from a row of a tile to the next
  int behind = 0;                            ///< 1: a row is finished once the next was begun
  bool holds = false;                        ///< rows of many warps: see RingWarp's kHolds
  int aside_turns = kAsideRows;              ///< a power of two: RingWarp::put_aside
  int aside_mask = 0;                        ///< and that less one
  int slot_chunks = 0;                       ///< chunks for whose sums a slot has room
  /// Every so many turns, a power of two or 0, a unit waits until the mean one is no further behind
  /// than so many eighths of that: see Pace.
  int pace_turns = 0, pace_lead = 0;
  float beta = 1;                       ///< of the gate
  float inverse = 1, inverse_of_g = 0;  ///< by which the sums of a row become its means
  /// Shared memory: what each warp keeps (control_bytes), what each unit does, a word for the
  /// block's pace, and the warps' rings.
  uint32_t warp_bytes = 0, units_at = 0, unit_bytes = 0, led_at = 0, ring_at = 0;
  uint32_t element_bytes = 0, stage_bytes = 0;
  uint32_t stats_in_stage = 0;  ///< a stage's rows, and then their statistics
  int tile_items = 1;           ///< of how many rows and groups
  RingRows in[4];               ///< h, dy, z, dh
  RingRows dx, dresidual, dz;
  unsigned wants = 0;  ///< of these and dh, which are there: one word is looked at sooner than four
};

/// What a warp has at a time: short rows in 16 bits, of a vector a lane; a row; or a chunk of one.
enum class RingUnit { short_rows, row, chunk };
inline RingUnit ring_unit(const RowOrder& order, bool odd, bool narrow) {
  if (order.chunks > 1) return RingUnit::chunk;
  return order.vecs == 1 && !odd && narrow ? RingUnit::short_rows : RingUnit::row;
}

/// Warps of a block, with 128 registers a lane. 24 with 80 spilled: 84 % of copy where these reach
/// 93. Two chunks a warp were slower too, since their weights are then read from shared memory.
inline constexpr int kRingWarps = 16;
/// Short rows need no more than 80, or 96 with a mean. Odd rows take so much arithmetic that they
/// want more warps, of 96, where those suffice; and they are often a chunk longer than a power of
/// two of them, as 65537 elements.
constexpr int most_ring_warps(RingUnit unit, bool odd, GateOrder gate, bool full) {
  if (gate != GateOrder::no_gate) return kRingWarps;
  if (unit == RingUnit::short_rows) return full ? 20 : 24;
  return odd && (unit == RingUnit::chunk || !full) ? 20 : kRingWarps;
}

/// The rows of dense tensors as rows of `size`.
inline NormBackwardArgs flattened(NormBackwardArgs k, int64_t size) {
  const auto flat = [&](auto&... t) {
    ((t.rows *= t ? t.cols / size : 1, t.cols = t.row_stride = size), ...);
  };
  flat(k.dy, k.dh, k.h, k.z, k.dx, k.dresidual, k.dz);
  return k;
}

/// The blocks of a unit that has work for so many warps, and the warps in each. Few blocks; but
/// where there is much arithmetic for a byte, so many that most of a block's warps have work, of
/// which fewer suffice to a unit that need not meet other blocks.
inline void choose_cluster(RingPlan& plan, int parts, int most_warps, int least_busy,
                           int least_alone) {
  int most = 0;
  for (int cluster : {1, 2, 4, 8, 16}) {
    const int warps = ceil_div(parts, cluster);
    if (warps > most_warps) continue;
    const int busy = most_warps / warps * parts / cluster;
    if (busy <= most) continue;
    plan.cluster = cluster, plan.unit_warps = warps, most = busy;
    if (busy >= (cluster == 1 ? least_alone : least_busy)) break;
  }
  if (most == 0) plan.stages = 0;
}

/// How closely blocks keep together. Multiprocessors are not served alike: the best finished 18 %
/// before the worst, and their rows were so far apart that memory was slower for it. The fewer
/// instructions a row takes, the closer they are to keep: half a turn, where a row is not many
/// blocks', whose warps wait for each other besides. Measured on an H100, and with fast memory on
/// an H200, where units counted each for itself (bench/RESULTS.md).
inline void choose_pace(RingPlan& plan, bool full, bool fast_memory) {
  const auto pace = [&](int turns, int lead) { plan.pace_turns = turns, plan.pace_lead = lead; };
  const bool residual = plan.in[3].element > 0, gated = plan.in[2].element > 0;
  const bool block = plan.order.chunks > 1, whole = block && plan.size % kChunk == 0;
  const bool narrow = plan.in[1].element == 2;
  if (fast_memory) {
    if (!block || (narrow && !residual)) return pace(0, 0);
    return narrow ? pace(8, 4) : pace(4, 2);
  }
  if (!narrow) return full ? pace(2, 2) : pace(4, 1);
  if (!block) {
    const bool layer = full && !gated;
    if (plan.order.vecs == 1 && plan.order.lanes == kWarpSize && !layer) return pace(2, 2);
    return pace(4, layer && plan.order.vecs > 1 ? 4 : 2);
  }
  if (plan.cluster == 16) {
    if (full) return pace(16, 4);
    return gated ? pace(4, 4) : residual ? pace(4, 2) : pace(8, 4);
  }
  if (!full) return gated ? pace(4, 1) : pace(2, 2);
  if (plan.cluster > 2) return gated ? pace(8, 2) : pace(4, 4);
  if (gated || plan.cluster == 2) return pace(4, 1);
  return whole && plan.unit_warps < kRingWarps ? pace(2, 2) : pace(4, 2);
}

/// A plan for k, whose rows are `size` long or have groups with weights of their own; a function of
/// the sizes alone, but for its pace. stages is 0 where they do not fit.
inline RingPlan ring_plan(const NormBackwardArgs& k, const RowOrder& order, bool odd,
                          bool fast_memory) {
  constexpr int64_t kMultiprocessors = 128;  // about: plans are to differ on no two devices
  RingPlan plan{.order = order};
  const auto rows_of = [](const auto& t) {
    RingRows r;
    r.data = static_cast<unsigned char*>(const_cast<void*>(static_cast<const void*>(t.data)));
    r.element = t ? static_cast<int>(size_of(t.dtype)) : 0;
    r.row_bytes = static_cast<int>(t.row_stride * r.element);
    return r;
  };
  const ConstRows* in[] = {&k.h, &k.dy, &k.z, &k.dh};
  for (int i = 0; i < 4; ++i) {
    plan.in[i] = rows_of(*in[i]);
    plan.element_bytes += static_cast<uint32_t>(plan.in[i].element);
  }
  plan.dx = rows_of(k.dx), plan.dresidual = rows_of(k.dresidual), plan.dz = rows_of(k.dz);
  plan.wants = (k.dx ? kWantsDx : 0) | (k.dresidual ? kWantsDresidual : 0) | (k.dz ? kWantsDz : 0) |
               (k.dh ? kHasDh : 0) | (plan.dresidual.element == 4 ? kWidens : 0);
  plan.size = static_cast<int>(order.n);
  plan.rows = static_cast<int>(k.dy.rows);
  plan.groups = static_cast<int>(k.dy.cols / order.n);
  plan.by_rows = plan.groups == 1;
  plan.at_once = kWarpSize / order.lanes;
  (plan.by_rows ? plan.step_rows : plan.set_groups) = plan.at_once;
  plan.bound = ceil_div(plan.groups, plan.set_groups);
  if (k.options.activation == GateActivation::swish) plan.beta = static_cast<float>(k.options.beta);
  if (k.options.kind != NormKind::l2) plan.inverse = 1 / static_cast<float>(plan.size);
  if (k.options.kind == NormKind::layer) plan.inverse_of_g = plan.inverse;

  const bool full = k.options.kind == NormKind::layer || k.db, narrow = plan.in[1].element == 2;
  const RingUnit unit = ring_unit(order, odd, narrow);
  const int most_warps = most_ring_warps(unit, odd, k.options.gate, full);
  const int64_t all = int64_t{plan.rows} * plan.groups;
  // Odd rows have room for a vector more, since they are read from the 16 bytes on which they
  // begin.
  const int width = narrow ? 8 : 4;
  plan.pitch = plan.size * plan.set_groups;
  if (odd) plan.pitch = ceil_div(plan.size, width) * width + width;
  int64_t piece = kChunk + (odd ? width : 0);  // elements of a stage
  plan.warp_bytes = control_bytes(full && order.chunks > 1);
  if (narrow && k.b && k.options.gate == GateOrder::norm_then_gate)
    plan.warp_bytes += static_cast<uint32_t>(kChunk * size_of(k.b.dtype));
  int64_t head = int64_t{most_warps} * plan.warp_bytes + 256;  // before the rings
  const auto memory_of_stage = [&] {
    const int64_t stats = order.chunks > 1 ? 0 : int64_t{plan.tile_items} * kStatsBytes;
    return ceil_div(piece * plan.element_bytes + stats, int64_t{128}) * 128;
  };
  const auto fit = [&](int64_t warp_stages) {
    return static_cast<int>((int64_t{kRingMemory} - head) / (warp_stages * memory_of_stage()));
  };
  if (order.chunks > 1) {
    // Gates in 16 bits, means, and odd rows.
    const bool computes = odd || (narrow && (k.z || full));
    const int least_busy = computes ? kRingWarps - 2
                           : narrow ? kRingWarps - 4
                           : k.z    ? kRingWarps - 3
                                    : 1;
    const int least_alone = odd ? least_busy : narrow ? kRingWarps - 4 : 1;
    choose_cluster(plan, order.chunks, most_warps, least_busy, least_alone);
    if (plan.stages == 0) return plan;
    plan.units = static_cast<int>(std::min<int64_t>(
        most_warps / plan.unit_warps, std::max<int64_t>(1, all * plan.cluster / kMultiprocessors)));
    plan.warps = plan.units * plan.unit_warps;
    plan.slot_chunks = order.chunks <= 8 ? 8 : std::max(16, order.chunks);
    plan.unit_bytes = static_cast<uint32_t>(kSlots * 8 * (1 + plan.slot_chunks));
    head += int64_t{plan.units} * plan.unit_bytes;
    plan.ranks = ceil_div(order.chunks, plan.unit_warps);
  } else {
    piece = int64_t{plan.pitch} * plan.step_rows;
    plan.tile_items = plan.at_once;
    const int64_t steps = int64_t{ceil_div(plan.rows, plan.step_rows)} * plan.bound;
    plan.warps = static_cast<int>(
        std::min<int64_t>({most_warps, fit(2), ceil_div(steps, kMultiprocessors)}));
    if (plan.warps < 1) return plan.stages = 0, plan;
    plan.units = plan.warps;
    const int64_t turns = steps / (kMultiprocessors * plan.warps);
    // A step of short rows is hardly more work than a turn's waiting and sending.
    const int64_t least_turns = unit == RingUnit::short_rows ? 80 : 128;
    const auto a_tile =
        std::clamp<int64_t>(std::min<int64_t>(fit(3 * plan.warps), turns / least_turns), 1, 8);
    plan.tile_rows = static_cast<int>(a_tile) * plan.step_rows;
    while (plan.aside_turns * a_tile > kAsideRows) plan.aside_turns /= 2;
    piece *= a_tile, plan.tile_items *= static_cast<int>(a_tile);
  }
  for (RingRows& t : plan.in) {
    t.at = plan.stage_bytes;
    plan.stage_bytes += static_cast<uint32_t>(piece * t.element);
  }
  plan.stats_in_stage = plan.stage_bytes;
  plan.stage_bytes = static_cast<uint32_t>(memory_of_stage());
  // Some 100 KB on their way suffice; what is left is the first cache's.
  const auto enough = (int64_t{112} << 10) / (int64_t{plan.warps} * plan.stage_bytes);
  const int64_t least = k.z ? 3 : 4;
  plan.stages = std::min<int>(fit(plan.warps), std::clamp<int64_t>(enough, least, kMostStages));
  if (!odd) choose_pace(plan, full, fast_memory);
  // Where many blocks meet, waiting for them costs more than forming it all again; with a bias's
  // sums registers do not suffice.
  plan.holds = narrow && !odd && !k.z && !full && plan.in[0].element == 2 && plan.cluster <= 8;
  // With two stages a warp's memory rests while it begins the next row: that costs more than to
  // wait for the sums, but where sixteen blocks send them.
  const bool far = full && plan.cluster == 16;
  plan.behind = order.chunks > 1 && plan.stages > (far ? 1 : 2) && !plan.holds;
  const auto dense = [&](const RingRows& t) { return t.row_bytes == plan.size * t.element; };
  plan.whole =
      !odd && plan.by_rows && order.chunks == 1 && std::all_of(plan.in, plan.in + 4, dense);
  plan.units_at = static_cast<uint32_t>(plan.warps) * plan.warp_bytes;
  plan.led_at = plan.units_at + static_cast<uint32_t>(plan.units) * plan.unit_bytes;
  plan.ring_at = (plan.led_at + 16 + 127) / 128 * 128;
  if (plan.stages < 2) plan.stages = 0;
  plan.aside_mask = plan.aside_turns - 1;
  return plan;
}

}  // namespace norma::norm_cuda
