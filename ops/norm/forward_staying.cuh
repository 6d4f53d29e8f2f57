#pragma once

#include <algorithm>

#include "norma/core/cuda/async_copy.cuh"
#include "norma/ops/norm/forward_meeting.cuh"

namespace norma::norm_cuda {

/// Whether what is beside x is brought to shared memory too. There is no room for it beside
/// LayerNorm's weights of 32 bits, but in the registers.
template <class T, bool kCentred, Beside kBeside>
inline constexpr bool kStagesBeside = kBeside != Beside::nothing && (sizeof(T) == 2 || !kCentred);

/// Blocks of a multiprocessor: as many as leave the registers for a group, or the shared memory.
/// LayerNorm of 16 bits was slower by four, but in clusters.
template <class T, class W, bool kCentred, Beside kBeside, Holder kHolder>
constexpr int staying_blocks() {
  if (sizeof(T) == 4 || (sizeof(W) == 4 && kCentred)) return 2;
  if (kBeside != Beside::nothing) return 3;
  return kCentred && kHolder != Holder::cluster ? 3 : 4;
}

/// Weights that have come, moved to where they are read from and made what they stand for: they may
/// be Ts, absent or about 1.
template <class T, class W, class Places, class Group>
__device__ __forceinline__ void settle_weights(const Places& from, const Places& to,
                                               const Group& group, int which, const void* w,
                                               float absent) {
  constexpr int kWidth = Group::kWidth;
#pragma unroll
  for (int v = 0; v < Group::kVecs; ++v) {
    float values[kWidth];
    if (!w) {
#pragma unroll
      for (float& e : values) e = absent;
    } else if (group.plan.weight_bytes == sizeof(float)) {
      from.template get<float, kWidth>(which, v).unpack(values);
    } else {
      to.template get<T, kWidth>(which, v).unpack(values);
    }
    if (w && which == 0 && group.plan.zero_centered) {
#pragma unroll
      for (float& e : values) e = add(e, 1.0f);
    }
    __syncwarp();  // all have read what others write
    to.put(which, v, Vector<W, kWidth>::pack(values));
  }
}

/// Groups of a warp or part of it, of a block or of a cluster. Clusters, and all beside weights
/// wider than x, stay for some of them (plan.rounds), their weights in shared memory, so that the
/// caches are not asked for them again, and while the warps of a group meet, the next group's x is
/// on its way there. Each lane has places of its own, so that none waits for another. W: what the
/// weights are there. They may be float beside T, and made of others: T's, absent or about 1.
///   bytes  rows · D · (x, y and where they are: z, residual, h); w, b a block, from the caches
///   bound  memory
template <class T, class W, bool kCentred, Beside kBeside, Holder kHolder>
__global__ void __launch_bounds__(kHeldWarps* kWarpSize,
                                  (staying_blocks<T, W, kCentred, kBeside, kHolder>()))
    norm_forward_staying_kernel(const __grid_constant__ ForwardPlan plan) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // older ones are spared the compilation
  constexpr bool kStages = kStagesBeside<T, kCentred, kBeside>, kWarp = kHolder == Holder::warp;
  constexpr bool kWider = sizeof(W) > sizeof(T), kCluster = kHolder == Holder::cluster;
  constexpr bool kTurns = kCluster || kWider;
  constexpr bool kLate = kStages && kBeside == Beside::gate_last;
  constexpr int kX = 2, kBesideX = 3;                          // their places
  constexpr int kOther = kBeside == Beside::residual ? 1 : 2;  // which tensor is beside x
  using Group = ForwardGroup<T, kCentred, kBeside, !kWarp, kLate>;
  using Meeting = HeldMeeting<kHolder, true>;
  constexpr int kWidth = Group::kWidth;
  __shared__ typename Meeting::Slots slots;
  extern __shared__ __align__(128) unsigned char memory[];
  const int warp = threadIdx.x / kWarpSize, block = static_cast<int>(blockIdx.x);
  int unit = block, chunk = kWarp ? 0 : warp;
  if constexpr (kCluster) {
    unit >>= 31 - __clz(plan.cluster);
    chunk += (block & (plan.cluster - 1)) * plan.warps;
  }
  Group group(plan, chunk);
  Meeting meet{slots, plan, group.lane, chunk};
  meet.start();

  // All warps of a block go on together, so that the compiler sees that no branch parts a warp.
  const int team = kWarp ? static_cast<int>(threadIdx.x) >> (31 - __clz(group.lanes)) : 0;
  const int teams = kWarp ? plan.warps * kWarpSize >> (31 - __clz(group.lanes)) : 1;
  int item = unit * teams + team, left = 1;  // the first group, and how many
  if constexpr (kTurns) {
    item = plan.first_of(unit) * teams + team;
    left = plan.turns_of(unit);
  }

  Ahead<Group::kVecs, 1 + kStages> ahead{shared_address(memory) +
                                             static_cast<uint32_t>(warp) * plan.stage_bytes +
                                             static_cast<uint32_t>(16 * group.lane),
                                         kWidth * int{sizeof(W)} / 16};
  const auto place = [&](const ForwardRows& t, int item) {
    return reinterpret_cast<T*>(t.data + item * t.row_bytes) + group.column;
  };
  const int step = group.of(1) * int{sizeof(T)};
  const auto ask_row = [&](int item) {
    const int has = !kWarp || item < plan.items ? group.mine : 0;
    ahead.ask(kX, place(plan.in[0], item), step, has);
    if constexpr (kStages && !kLate) ahead.ask(kBesideX, place(plan.in[kOther], item), step, has);
  };
  wait_for_previous_kernel();
  ask_row(item);
  commit_copies();
  const auto ask_weights = [&](int which, const void* w) {
    if (!w) return;
    // The first cache has those of short groups for many blocks, but not a cluster's.
    if (kWider && plan.weight_bytes == sizeof(float))
      ahead.template ask_pieces<!kCluster>(
          which, static_cast<const float*>(w) + group.column - group.lane_in * kWidth, group.terms,
          group.lanes, group.lane_in);
    else
      ahead.in_planes().template ask<!kCluster>(which, static_cast<const T*>(w) + group.column,
                                                step, group.mine);
  };
  ask_weights(0, plan.w);
  if constexpr (kCentred) ask_weights(1, plan.b);
  commit_copies();
  if constexpr (kCluster) cluster_wait();  // all blocks' barriers are there
  // To move them pays where they are read more often, most where a row's sums wait for all warps.
  bool unsettled = !plan.has_weights_of(sizeof(W)) || (kWider && left > (kCluster ? 1 : 2));
#pragma unroll 1
  for (;; item += teams) {
    const bool real = !kWarp || item < plan.items;
    const int has = real ? group.mine : 0;
    if constexpr (kLate) {
      ahead.ask(kBesideX, place(plan.in[kOther], item), step, has);
      commit_copies();
    }
    wait_for_copies<kLate>();
    if constexpr (kWider) __syncwarp();  // other lanes asked for some of the weights
    if constexpr (kWider || sizeof(T) == 4) {
      if (unsettled) {
        unsettled = false;
        const auto places = ahead.in_planes();
        settle_weights<T, W>(ahead, places, group, 0, plan.w, 1);
        if constexpr (kCentred) settle_weights<T, W>(ahead, places, group, 1, plan.b, 0);
        ahead = places;
      }
    }
    group.take(
        has,
        [&]<class E>(int which, int v) {
          if (kStages || which == 0)
            return ahead.template get<E, kWidth>(which == 0 ? kX : kBesideX, v);
          return load_vector<From::once, kWidth>(place(plan.in[kOther], item) + group.of(v));
        },
        [&](int v, const Vector<T, kWidth>& r) {
          store_vector(place(plan.h, item) + group.of(v), r);
        });
    if constexpr (kTurns) {
      if (left > 1) ask_row(item + teams);
      commit_copies();  // empty at the end: they are counted
    }
    const Stats<float> stats =
        group.statistics(has, meet, [&] {  // the next group's x may be in the place of this one's
          const T* from = place(Group::kResidual ? plan.h : plan.in[0], item);
          group.take_again(has, [&]<class E>(int, int v) {
            return load_vector<From::anywhere, kWidth>(from + group.of(v));
          });
        });
    if constexpr (kLate) wait_for_copies<kTurns>();
    T* y = place(plan.y, item);
    group.template write_by<kCentred, false>(
        stats, has,
        [&](int which, int v, float(&values)[kWidth]) {
          ahead.template get<W, kWidth>(which, v).unpack(values);
        },
        [&](int v) {
          if constexpr (kLate)
            return ahead.template get<T, kWidth>(kBesideX, v);
          else
            return group.z[Group::kGateLast ? v : 0];
        },
        [&](int, const Vector<T, kWidth>& r) { store_vector(y, r), y += group.of(1); });
    if (real && group.lane_in == 0 && chunk == 0) group.write_stats(stats, item);
    if (!kTurns || --left == 0) break;
  }
#endif
}

/// Groups that a block or cluster takes in turn. Each doubling cost a point of copy; but one group
/// a cluster pays for the weights each time: dear for LayerNorm, most in clusters of sixteen, and
/// for halves where memory is fast.
template <class T, class W>
int staying_rounds(const Cuda& on, const ForwardPlan& plan, bool centred, Beside beside) {
  if constexpr (sizeof(W) > sizeof(T)) {
    const bool many = plan.chunks > 4 && beside == Beside::nothing;
    if (centred) return many || plan.cluster > 1 ? 4 : 2;
    return many ? 2 : 1;
  }
  if (plan.cluster == 1) return 1;
  const bool sixteen = plan.cluster == 16, wide = sizeof(T) == 4;
  if (centred && !sixteen) return 2;
  if (centred && wide && beside == Beside::gate_last) return 36;
  if (centred) return wide ? 4 : 2;
  // An H200's memory is 6144 bits wide, an H100's 5120.
  const bool fast_memory = detail::properties(on.device).memoryBusWidth > 5120;
  if (!wide && !fast_memory) return 1;
  return sixteen || (!wide && beside != Beside::residual) ? 2 : 1;
}

template <class T>
void forward_staying(const Cuda& on, const NormForwardArgs& k, ForwardPlan plan) {
  if (plan.groups > 1)  // dense: each is a row to it
    for (ForwardRows* t : {&plan.in[0], &plan.in[1], &plan.in[2], &plan.y, &plan.h})
      t->row_bytes = t->group_bytes;
  const auto run = [&]<class W, bool kCentred, Beside kBeside, Holder kHolder>() {
    constexpr int kVecs = ForwardGroup<T, kCentred, kBeside, true>::kVecs;
    plan.rounds = staying_rounds<T, W>(on, plan, kCentred, kBeside);
    plan.stage_bytes =
        static_cast<uint32_t>(Ahead<kVecs, 1 + kStagesBeside<T, kCentred, kBeside>>::bytes_of_warp(
            sizeof(W) / sizeof(T), kCentred));
    const int teams = kHolder == Holder::warp ? plan.warps * kWarpSize / plan.lanes : 1;
    const auto kernel = norm_forward_staying_kernel<T, W, kCentred, kBeside, kHolder>;
    const int threads = plan.warps * kWarpSize;
    const size_t shared = static_cast<size_t>(plan.warps) * plan.stage_bytes;
    int units = ceil_div(plan.items, teams);
    if (plan.rounds > 1)
      units = plan.take_turns(units, resident_clusters(on, reinterpret_cast<const void*>(kernel),
                                                       threads, shared, plan.cluster));
    launch(on,
           {.grid = dim3(static_cast<unsigned>(units * plan.cluster)),
            .block = dim3(static_cast<unsigned>(threads)),
            .shared = shared,
            .cluster = static_cast<unsigned>(plan.cluster),
            .overlap = true},
           kernel, plan);
  };
  const auto by_holder = [&]<class W, bool kCentred, Beside kBeside>() {
    if (plan.cluster > 1) return run.template operator()<W, kCentred, kBeside, Holder::cluster>();
    plan.chunks > 1 ? run.template operator()<W, kCentred, kBeside, Holder::block>()
                    : run.template operator()<W, kCentred, kBeside, Holder::warp>();
  };
  by_member<T>(k, [&]<bool kCentred, Beside kBeside>() {
    if constexpr (kBeside != Beside::wide_residual)
      plan.has_weights_of(sizeof(T)) ? by_holder.template operator()<T, kCentred, kBeside>()
                                     : by_holder.template operator()<float, kCentred, kBeside>();
    return true;
  });
}

}  // namespace norma::norm_cuda
