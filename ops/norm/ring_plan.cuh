#pragma once

#include <algorithm>

#include "norma/core/cuda/launch.cuh"
#include "norma/ops/norm/kernels.h"
#include "norma/ops/norm/row.cuh"

namespace norma::norm_cuda {

inline constexpr int kSlots = 4;  ///< sums on their way: see norm_backward_ring_kernel
inline constexpr size_t kRingMemory = 224 << 10;

/// Rows that are read into a stage, or written.
struct RingRows {
  unsigned char* data = nullptr;
  int row_bytes = 0;  ///< from one to the next
  int element = 0;    ///< bytes
  uint32_t at = 0;    ///< in a stage
};

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
  int behind = 0;                            ///< 1: a row is finished once the next was begun
  int slot_lanes = 1;                        ///< that add up the slots
  uint32_t element_bytes = 0, stage_bytes = 0, slots_at = 0, ring_at = 0;
  RingRows in[4];  ///< h, dy, z, dh
  RingRows dx, dresidual, dz;
};

/// Elements of a lane.
inline constexpr int kRingElements = kChunk / kWarpSize;
/// Warps of a block: with 128 registers a lane. 24 with 80 were slower even where nothing spilled.
inline constexpr int kRingWarps = 16;

/// The rows of dense tensors as rows of `size`.
inline NormBackwardArgs flattened(NormBackwardArgs k, int64_t size) {
  const auto flat = [&](auto&... t) {
    ((t.rows *= t ? t.cols / size : 1, t.cols = t.row_stride = size), ...);
  };
  flat(k.dy, k.dh, k.h, k.z, k.dx, k.dresidual, k.dz);
  return k;
}

/// A plan for k, whose rows are `size` long or have groups with weights of their own; a function of
/// the sizes alone. stages is 0 where they do not fit.
inline RingPlan ring_plan(const NormBackwardArgs& k, const RowOrder& order) {
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
  plan.size = static_cast<int>(order.n);
  plan.rows = static_cast<int>(k.dy.rows);
  plan.groups = static_cast<int>(k.dy.cols / order.n);
  plan.by_rows = plan.groups == 1;
  plan.at_once = kWarpSize / order.lanes;
  (plan.by_rows ? plan.step_rows : plan.set_groups) = plan.at_once;
  plan.bound = ceil_div(plan.groups, plan.set_groups);

  const int64_t all = int64_t{plan.rows} * plan.groups;
  int64_t piece = kChunk;  // elements of a stage
  int64_t head = 0;
  const auto fit = [&](int64_t warp_stages) {  // of pieces
    return static_cast<int>((kRingMemory - 2048 - head) /
                            (warp_stages * piece * plan.element_bytes));
  };
  if (order.chunks > 1) {
    while (plan.cluster * kRingWarps < order.chunks) plan.cluster *= 2;
    if (plan.cluster > 16) return plan.stages = 0, plan;
    plan.unit_warps = ceil_div(order.chunks, plan.cluster);
    plan.ranks = ceil_div(order.chunks, plan.unit_warps);
    if (plan.cluster == 1)
      plan.units = static_cast<int>(
          std::min<int64_t>(kRingWarps / plan.unit_warps, ceil_div(all, kMultiprocessors)));
    plan.warps = plan.units * plan.unit_warps;
    head = int64_t{plan.units} * order.chunks * kSlots * 8;
    while (plan.slot_lanes < std::min(order.chunks, kWarpSize)) plan.slot_lanes *= 2;
  } else {
    piece = order.n * plan.at_once;
    const int64_t steps = int64_t{ceil_div(plan.rows, plan.step_rows)} * plan.bound;
    plan.warps = static_cast<int>(
        std::min<int64_t>({kRingWarps, fit(2), ceil_div(steps, kMultiprocessors)}));
    if (plan.warps < 1) return plan.stages = 0, plan;
    plan.units = plan.warps;
    const int64_t turns = steps / (kMultiprocessors * plan.warps);
    const auto a_tile =
        std::clamp<int64_t>(std::min<int64_t>(fit(3 * plan.warps), turns / 8), 1, 8);
    plan.tile_rows = static_cast<int>(a_tile) * plan.step_rows;
    piece *= a_tile;
  }
  for (RingRows& t : plan.in) {
    t.at = plan.stage_bytes;
    plan.stage_bytes += static_cast<uint32_t>(piece * t.element);
  }
  plan.stages = std::min(8, fit(plan.warps));
  plan.behind = order.chunks > 1 && plan.stages > 2;
  const auto dense = [&](const RingRows& t) { return t.row_bytes == plan.size * t.element; };
  plan.whole = plan.by_rows && order.chunks == 1 && std::all_of(plan.in, plan.in + 4, dense);
  plan.slots_at = static_cast<uint32_t>(
      (plan.warps * plan.stages + (order.chunks > 1 ? plan.units * kSlots : 0)) * 8);
  plan.ring_at = (plan.slots_at + static_cast<uint32_t>(head) + 127) / 128 * 128;
  if (plan.stages < 2) plan.stages = 0;
  return plan;
}

}  // namespace norma::norm_cuda
