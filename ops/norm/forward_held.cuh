#pragma once

#include "norma/core/cuda/async_copy.cuh"
#include "norma/ops/norm/forward_meeting.cuh"

namespace norma::norm_cuda {

inline constexpr int kClusterWarps = 16;  // at most, of a block of a cluster

/// So few that what they wait for is not hidden by others.
inline constexpr int kFewForwardWarps = 1024;

/// Blocks of a multiprocessor: as many as leave the registers for a group.
template <class T, Beside kBeside, Holder kHolder>
constexpr int held_blocks() {
  constexpr bool kWide = sizeof(T) == 4 || kBeside == Beside::wide_residual;
  if (kHolder == Holder::cluster) return kWide ? 1 : 2;
  if (kWide) return sizeof(T) == 2 ? 3 : 2;
  return kBeside == Beside::nothing || kBeside == Beside::residual ? 4 : 3;
}

/// The plain members up to kHeldChunks chunks, each tensor read once: a group or more a warp, a
/// group a block of up to kHeldWarps warps, or one a block or a cluster of blocks of up to
/// kClusterWarps. kAhead: it asks for its weights, and a gate, before anything else: each lane's
/// own come to shared memory while it waits for the rest.
///   bytes  rows · D · (x, y and where they are: z, residual, h); w and b come from the caches
///   bound  memory
template <class T, bool kCentred, Beside kBeside, Holder kHolder,
          bool kAhead = kHolder == Holder::cluster>
__global__ void __launch_bounds__((kHolder == Holder::cluster ? kClusterWarps : kHeldWarps) *
                                      kWarpSize,
                                  (held_blocks<T, kBeside, kHolder>()))
    norm_forward_held_kernel(const __grid_constant__ ForwardPlan plan) {
  if constexpr (kHolder == Holder::cluster && !kHasClusters) return;
  using Group = ForwardGroup<T, kCentred, kBeside, kHolder != Holder::warp, kAhead>;
  using Meeting = HeldMeeting<kHolder>;
  using H = typename Group::H;
  constexpr int kWidth = Group::kWidth;
  __shared__ typename Meeting::Slots slots;
  const int warp = threadIdx.x / kWarpSize;
  int item = static_cast<int>(blockIdx.x), chunk = 0;
  if constexpr (kHolder == Holder::block) chunk = warp;
  if constexpr (kHolder == Holder::cluster) {
    chunk = (item & (plan.cluster - 1)) * plan.warps + warp;
    item >>= 31 - __clz(plan.cluster);
  }
  Group group(plan, chunk);
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
  const int first_weight = plan.own_weights ? item % plan.groups * plan.size : 0;
  extern __shared__ __align__(128) unsigned char memory[];
  constexpr bool kGate = Group::kGateFirst || Group::kGateLast;
  const auto ahead = Ahead<Group::kVecs, kGate>::of_warp(
      shared_address(memory) + static_cast<uint32_t>(warp) * plan.stage_bytes +
          static_cast<uint32_t>(16 * group.lane),
      plan.weight_bytes * kWidth / 16);
  wait_for_previous_kernel();  // every place is known
  if constexpr (kAhead) {
    if constexpr (kGate) ahead.ask(2, z, group.of(1) * int{sizeof(T)}, has);
    commit_copies();
    const auto ask_weights = [&](int which, const void* w) {
      const int first = first_weight + group.column;
      if (ahead.parts == 2)
        ahead.ask_pieces(which, static_cast<const float*>(w) + first - group.lane_in * kWidth,
                         group.terms, group.lanes, group.lane_in);
      else
        ahead.ask(which, static_cast<const T*>(w) + first, group.of(1) * int{sizeof(T)}, has);
    };
    if (plan.w) ask_weights(0, plan.w);
    if (plan.b) ask_weights(1, plan.b);
    commit_copies();
  }
  group.take(
      has,
      [&]<class E>(int which, int v) {
        if constexpr (!std::is_same_v<E, T>) {
          if constexpr (Group::kWide)
            if (plan.paired) return load_halves(residual + group.of(v));
          return load_vector<From::once, kWidth>(residual + group.of(v));
        } else {
          if (kAhead && which == 2) {
            if (v == 0) wait_for_copies<1>();
            return ahead.template get<E, kWidth>(2, v);
          }
          const E* from = x;
          if constexpr (std::is_same_v<H, T>)
            if (which == 1) from = residual;
          if (which == 2) from = z;
          return load_vector<From::once, kWidth>(from + group.of(v));
        }
      },
      [&](int v, const Vector<H, kWidth>& r) {
        if constexpr (Group::kWide)
          if (plan.paired) return store_halves(h + group.of(v), r);
        store_vector(h + group.of(v), r);
      });
  const Stats<float> stats = group.statistics(has, meet, [&] {
    if constexpr (Group::kWide) __syncwarp();  // a neighbour may have written half of it
    group.take_again(has, [&]<class E>(int, int v) {
      if constexpr (Group::kResidual)
        return load_vector<From::anywhere, kWidth>(h + group.of(v));
      else
        return load_vector<From::once, kWidth>(x + group.of(v));
    });
  });
  T* y = place.template operator()<T>(plan.y);
  if constexpr (kAhead) {
    wait_for_copies<0>();
    __syncwarp();  // other lanes asked for some of them
  }
  group.write(
      stats, has,
      [&]<class E>(int which, int v) {
        if constexpr (kAhead) {
          return ahead.template get<E, kWidth>(which, v);
        } else {
          // Within the weights, so that no branch is needed where a lane has no vector v.
          const int c = first_weight + min(group.column + group.of(v), plan.size - kWidth);
          return load_vector<From::cached, kWidth>(static_cast<const E*>(which ? plan.b : plan.w) +
                                                   c);
        }
      },
      [&](int, const Vector<T, kWidth>& r) { store_vector(y, r), y += group.of(1); });
  if (real && group.lane_in == 0 && chunk == 0) group.write_stats(stats, item);
}

/// Whether norm_forward_staying_kernel is faster (bench/RESULTS.md). For groups that lie evenly and
/// share their weights, beside a residual of their dtype, without a bias that is RMSNorm's.
template <class T>
bool stays(const Cuda& on, const NormForwardArgs& k, const ForwardPlan& plan) {
  const bool even = plan.groups == 1 || (!plan.own_weights && plan.all_dense());
  if (detail::properties(on.device).major < 9 || plan.warps > kHeldWarps || !even ||
      (k.b && k.options.kind != NormKind::layer) || (k.residual && k.residual.dtype != dtype_of<T>))
    return false;
  // A warp's rows to add to, with a mean and weights of float32, are faster one by one: 17.6 µs for
  // 18.9 (16384 rows of 384, H100), and a step of GPT-2 takes 57.6 ms for 57.8.
  if (plan.chunks == 1 && k.residual && k.options.kind == NormKind::layer &&
      !plan.has_weights_of(sizeof(T)))
    return false;
  // In clusters, halves that are gated first were as fast by blocks of one row.
  return plan.cluster == 1 || k.options.gate != GateOrder::gate_then_norm || sizeof(T) == 4 ||
         !plan.has_weights_of(sizeof(T));
}

/// Runs it or norm_forward_staying_kernel, or says that the sizes do not fit.
template <class T>
bool forward_held(const Cuda& on, const NormForwardArgs& k) {
  const int64_t size = k.options.group == 0 ? k.x.cols : k.options.group;
  constexpr int64_t kMost = int64_t{1} << 30;  // groups are counted in int
  if (k.x.rows * (k.x.cols / size) > kMost) return false;
  ForwardPlan plan = forward_plan<T>(k, forward_order(size, kLaneWidth<T>));
  const int chunks = plan.chunks;
  plan.paired = plan.in[1].element > int{sizeof(T)} && plan.lanes > 1 && size % 16 == 0;
  const bool clusters = detail::properties(on.device).major >= 9;
  const bool few = clusters && plan.lanes == kWarpSize &&
                   int64_t{plan.items} * chunks <= as_pretended(on, kFewForwardWarps);
  const auto go = [&]<Holder kHolder>(int blocks) {
    return by_member<T>(k, [&]<bool kCentred, Beside kBeside>() {
      using Group = ForwardGroup<T, kCentred, kBeside, true>;
      using Before = Ahead<Group::kVecs, Group::kGateFirst || Group::kGateLast>;
      const auto run = [&](auto kernel) {
        launch(on,
               {.grid = dim3(static_cast<unsigned>(blocks)),
                .block = dim3(static_cast<unsigned>(plan.warps * kWarpSize)),
                .shared = static_cast<size_t>(plan.warps) * plan.stage_bytes,
                .cluster = static_cast<unsigned>(plan.cluster),
                .overlap = true},
               kernel, plan);
      };
      constexpr bool kCluster = kHolder == Holder::cluster;
      if (kCluster)
        plan.stage_bytes = static_cast<uint32_t>(
            Before::bytes_of_warp(plan.weight_bytes * Group::kWidth / 16, plan.b));
      run(norm_forward_held_kernel<T, kCentred, kBeside, kHolder>);
      return true;
    });
  };
  const bool plain_layer = k.options.kind == NormKind::layer && !k.z && !k.residual;
  if (chunks == 1 && !few) {
    // Larger blocks gave LayerNorm's short rows of 16 bits a point, and cost others as much.
    plan.warps =
        sizeof(T) == 2 && plain_layer && plan.lanes < kWarpSize && plan.has_weights_of(sizeof(T))
            ? kHeldWarps
            : 4;
    if (stays<T>(on, k, plan)) return forward_staying<T>(on, k, plan), true;
    return go.template operator()<Holder::warp>(
        ceil_div(plan.items, plan.warps * kWarpSize / plan.lanes));
  }
  plan.warps = chunks;
  if (chunks <= kHeldWarps && !few) {
    if (stays<T>(on, k, plan)) return forward_staying<T>(on, k, plan), true;
    return go.template operator()<Holder::block>(plan.items);
  }
  // Of float32 beside 16 bits, which are few to a multiprocessor, larger blocks were faster.
  const bool wide = plan.in[1].element > int{sizeof(T)};
  int warps = wide || chunks > 16 * kHeldWarps ? kClusterWarps : kHeldWarps;
  // LayerNorm's weights of float32 leave room for five blocks of four warps, but for two of eight.
  const bool layer = k.options.kind == NormKind::layer && !k.residual;
  if (!few && sizeof(T) == 2 && layer && !plan.has_weights_of(sizeof(T)) && chunks <= 16 * 4)
    warps = 4;
  while (plan.warps > warps) plan.cluster *= 2, plan.warps = ceil_div(chunks, plan.cluster);
  if (!clusters || plan.cluster > 16 || int64_t{plan.items} * plan.cluster > kMost) return false;
  plan.ranks = ceil_div(chunks, plan.warps);
  if (!few && stays<T>(on, k, plan)) return forward_staying<T>(on, k, plan), true;
  return go.template operator()<Holder::cluster>(plan.items * plan.cluster);
}

}  // namespace norma::norm_cuda
