#pragma once

#include <algorithm>

#include "norma/ops/norm/forward_group.cuh"

namespace norma::norm_cuda {

inline constexpr int kHeldChunks = 128;  // at most, of a group

/// Blocks of a multiprocessor: as many as leave the registers for a group.
template <class T, bool kCentred, Beside kBeside>
inline constexpr int kHeldBlocks = sizeof(T) == 4                                              ? 2
                                   : kBeside == Beside::nothing || kBeside == Beside::residual ? 4
                                                                                               : 3;

/// Of a group's warps in one block or a cluster: each tells all others its sums. Two sets of slots
/// suffice: who sends those of a meeting has those of the one before, and so all have read the one
/// before that. In a cluster a barrier counts the bytes that come; one that all blocks arrive at
/// would wait for their stores to global memory too.
template <Holder kHolder>
struct HeldMeeting {
  struct Slots {
    float2 sums[2][kHolder == Holder::cluster ? kHeldChunks : kHeldWarps];
    SharedBarrier met[2];
  };
  Slots& slots;
  const ForwardPlan& plan;
  const int lane, chunk;
  uint32_t meetings = 0;

  __device__ __forceinline__ void start() {
    if constexpr (kHolder != Holder::cluster) return;
    if (threadIdx.x == 0) {
      for (SharedBarrier& b : slots.met) {
        b.init(1);
        b.expect(static_cast<uint32_t>(plan.order.chunks) * sizeof(float2));
      }
      publish_barriers();
    }
    __syncwarp();
    cluster_arrive();
  }
  __device__ __forceinline__ const float2* operator()(float2 mine) {
    const uint32_t set = meetings & 1;
    float2* slot = &slots.sums[set][chunk];
    if constexpr (kHolder == Holder::cluster) {
      if (meetings == 0) cluster_wait();  // all blocks' barriers are there
      SharedBarrier& met = slots.met[set];
      if (meetings > 1 && threadIdx.x == 0)
        met.expect(static_cast<uint32_t>(plan.order.chunks) * sizeof(float2));
      if (lane < plan.ranks && chunk < plan.order.chunks)
        send_counted(slot, mine, &met, static_cast<uint32_t>(lane));
      met.wait(meetings >> 1 & 1);
    } else {
      if (lane == 0) *slot = mine;
      __syncthreads();
    }
    ++meetings;
    return slots.sums[set];
  }
};

/// The plain members up to kHeldChunks chunks, each tensor read once: a group or more a warp, a
/// group a block of up to kHeldWarps warps, or one a cluster of such.
///   bytes  rows · D · (x, y and where they are: z, residual, h); w and b come from the caches
///   bound  memory
template <class T, bool kCentred, Beside kBeside, Holder kHolder>
__global__ void __launch_bounds__(kHeldWarps* kWarpSize, (kHeldBlocks<T, kCentred, kBeside>))
    norm_forward_held_kernel(const __grid_constant__ NormForwardArgs k,
                             const __grid_constant__ ForwardPlan plan) {
  using Group = ForwardGroup<T, kCentred, kBeside, kHolder != Holder::warp>;
  using Meeting = HeldMeeting<kHolder>;
  using H = typename Group::H;
  constexpr int kWidth = Group::kWidth;
  __shared__ typename Meeting::Slots slots;
  wait_for_previous_kernel();
  const int warp = threadIdx.x / kWarpSize;
  int item = static_cast<int>(blockIdx.x), chunk = 0;
  if constexpr (kHolder == Holder::block) chunk = warp;
  if constexpr (kHolder == Holder::cluster) {
    item /= plan.cluster;
    chunk = static_cast<int>(cluster_rank()) * plan.warps + warp;
  }
  Group group(k, plan, chunk);
  if constexpr (kHolder == Holder::warp)
    item = (item * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) >>
           (31 - __clz(group.lanes));
  const bool real = kHolder != Holder::warp || item < plan.items;
  const int has = real ? group.mine : 0;
  Meeting meet{slots, plan, group.lane, chunk};
  meet.start();

  const auto place = [&]<class E>(const ForwardRows& t) {
    return reinterpret_cast<E*>(t.group(item, plan.groups)) + group.column;
  };
  const T* const x = place.template operator()<T>(plan.in[0]);
  const T* const z = place.template operator()<T>(plan.in[2]);
  const H* const residual = place.template operator()<H>(plan.in[1]);
  H* const h = place.template operator()<H>(plan.h);
  group.take(
      has,
      [&]<class E>(int which, int v) {
        if constexpr (!std::is_same_v<E, T>) {
          return load_vector<From::once, kWidth>(residual + group.of(v));
        } else {
          const E* from = x;
          if constexpr (std::is_same_v<H, T>)
            if (which == 1) from = residual;
          if (which == 2) from = z;
          return load_vector<From::once, kWidth>(from + group.of(v));
        }
      },
      [&](int v, const Vector<H, kWidth>& r) { store_vector(h + group.of(v), r); });
  const Stats<float> stats = group.statistics(has, meet, [](float) {});
  if (real && group.lane_in == 0 && chunk == 0) group.write_stats(stats, item);
  T* const y = place.template operator()<T>(plan.y);
  const int first = (plan.own_weights ? item % plan.groups * plan.size : 0) + group.column;
  const auto finish = [&]<class W>() {
    group.template write<W>(
        stats, has, bool(k.w), bool(k.b),
        [&]<class E>(int which, int v) {
          return load_vector<From::cached, kWidth>((which ? k.b : k.w).as<E>() + first +
                                                   group.of(v));
        },
        [&](int v, const Vector<T, kWidth>& r) { store_vector(y + group.of(v), r); });
  };
  if (sizeof(T) == 4 || !plan.narrow_weights)
    finish.template operator()<float>();
  else
    finish.template operator()<T>();
}

/// Runs it, or says that the sizes do not fit.
template <class T>
bool forward_held(const Cuda& on, const NormForwardArgs& k) {
  const int64_t size = k.options.group == 0 ? k.x.cols : k.options.group;
  constexpr int64_t kMost = int64_t{1} << 30;  // groups are counted in int
  if (k.x.rows * (k.x.cols / size) > kMost) return false;
  ForwardPlan plan = forward_plan<T>(k, forward_order(size, kLaneWidth<T>));
  const int chunks = plan.order.chunks;
  const auto go = [&]<Holder kHolder>(int blocks) {
    return by_member<T>(k, [&]<bool kCentred, Beside kBeside>() {
      launch(on,
             {.grid = dim3(static_cast<unsigned>(blocks)),
              .block = dim3(static_cast<unsigned>(plan.warps * kWarpSize)),
              .cluster = static_cast<unsigned>(plan.cluster),
              .overlap = true},
             norm_forward_held_kernel<T, kCentred, kBeside, kHolder>, k, plan);
      return true;
    });
  };
  if (chunks == 1) {
    plan.warps = 4;
    return go.template operator()<Holder::warp>(
        ceil_div(plan.items, plan.warps * kWarpSize / plan.order.lanes));
  }
  plan.warps = chunks;
  if (chunks <= kHeldWarps) return go.template operator()<Holder::block>(plan.items);
  while (plan.warps > kHeldWarps) plan.cluster *= 2, plan.warps = ceil_div(chunks, plan.cluster);
  if (detail::properties(on.device).major < 9 || plan.cluster > 16 || chunks > kHeldChunks ||
      int64_t{plan.items} * plan.cluster > kMost)
    return false;
  plan.ranks = ceil_div(chunks, plan.warps);
  return go.template operator()<Holder::cluster>(plan.items * plan.cluster);
}

}  // namespace norma::norm_cuda
