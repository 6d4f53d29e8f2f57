#pragma once

#include <algorithm>

#include "norma/core/cuda/async_copy.cuh"
#include "norma/ops/norm/forward_meeting.cuh"

namespace norma::norm_cuda {

/// Whether what is beside x is brought to shared memory too. There is no room for it beside
/// LayerNorm's weights of 32 bits, but in the registers.
template <class T, bool kCentred, Beside kBeside>
inline constexpr bool kStagesBeside = kBeside != Beside::nothing && (sizeof(T) == 2 || !kCentred);

/// Whether a cluster's warps may be several teams, each with a group of its own, that share weights
/// in shared memory, of which LayerNorm's of 32 bits take more than x.
template <class W, bool kCentred, Beside kBeside, Holder kHolder>
inline constexpr bool kCanTeam = (kHolder == Holder::cluster) && kCentred && sizeof(W) == 4 &&
                                 (kBeside == Beside::nothing || kBeside == Beside::gate_last);
/// Warps of a block of teams, at most, which leave 80 registers to a lane, or 128.
template <class T>
inline constexpr int kTeamsWarps = sizeof(T) == 4 ? 16 : 24;
/// Blocks of a multiprocessor: as many as leave the registers for a group, or the shared memory.
/// LayerNorm of 16 bits was slower by four, but in clusters.
template <class T, class W, bool kCentred, Beside kBeside, Holder kHolder, bool kTeams>
constexpr int staying_blocks() {
  if (kTeams) return 1;
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
    if (v >= group.plan.vecs) break;
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
template <class T, class W, bool kCentred, Beside kBeside, Holder kHolder, bool kTeams>
__global__ void __launch_bounds__((kTeams ? kTeamsWarps<T> : kHeldWarps) * kWarpSize,
                                  (staying_blocks<T, W, kCentred, kBeside, kHolder, kTeams>()))
    norm_forward_staying_kernel(const __grid_constant__ ForwardPlan plan) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // older ones are spared the compilation
  constexpr bool kStages = kStagesBeside<T, kCentred, kBeside>, kWarp = kHolder == Holder::warp;
  constexpr bool kWider = sizeof(W) > sizeof(T), kCluster = kHolder == Holder::cluster;
  constexpr bool kTurns = kCluster || kWider;
  constexpr bool kLate = kStages && kBeside == Beside::gate_last;
  constexpr int kX = 2, kBesideX = 3;                          // their places
  constexpr int kOther = kBeside == Beside::residual ? 1 : 2;  // which tensor is beside x
  using Group = ForwardGroup<T, kCentred, kBeside, !kWarp, kLate>;
  using Meeting = HeldMeeting<kHolder, true, kTeams>;
  constexpr int kWidth = Group::kWidth;
  // A block's rows write their statistics together: 4 bytes of each by every row for itself took
  // LayerNorm a point.
  constexpr bool kGathers = kWarp && !kTurns;
  __shared__ typename Meeting::Slots slots[kTeams ? kMostTeams : 1];
  extern __shared__ __align__(128) unsigned char memory[];
  const int warp = threadIdx.x / kWarpSize, block = static_cast<int>(blockIdx.x);
  // All warps of a block go on together, so that the compiler sees that no branch parts a warp.
  constexpr bool kMany = kWarp || kTeams;
  const int teams = kMany ? plan.teams : 1;
  int unit = block, team = 0, in_team = kWarp ? 0 : warp;
  if constexpr (kTeams) team = warp / plan.team_warps, in_team -= team * plan.team_warps;
  int chunk = in_team;
  if constexpr (kCluster) {
    unit >>= 31 - __clz(plan.cluster);
    chunk += (block & (plan.cluster - 1)) * plan.team_warps;
  }
  Group group(plan, chunk);
  Meeting meet{slots[kTeams ? team : 0], plan, group.lane, chunk, team};
  meet.start();
  if constexpr (kWarp) team = static_cast<int>(threadIdx.x) >> (31 - __clz(group.lanes));
  int item = unit * teams + team, left = 1;  // the first group, and how many
  if constexpr (kTurns) {
    item = plan.first_of(unit) * teams + team;
    left = plan.turns_of(unit);
  }

  // A warp's tensors and weights; teams' weights come before all tensors.
  constexpr uint32_t kParts = kWidth * sizeof(W) / 16;
  const uint32_t plane = plan.plane_bytes, memory_at = shared_address(memory) + 16u * group.lane;
  Ahead<Group::kVecs, 1 + kStages> ahead{memory_at + static_cast<uint32_t>(warp) * plan.stage_bytes,
                                         0, plane, int{kParts}};
  if constexpr (kTeams) {
    ahead.weights = memory_at + static_cast<uint32_t>(in_team) * 2 * kParts * plane;
    ahead.mine += static_cast<uint32_t>(plan.team_warps) * 2 * kParts * plane;
  } else {
    ahead.weights = ahead.mine + (1 + kStages) * plane;
  }
  // The warps whose places they are: of teams, the first one's.
  const bool settles = !kTeams || warp < plan.team_warps;
  const auto place = [&](const ForwardRows& t, int item) {
    return reinterpret_cast<T*>(t.data + item * t.row_bytes) + group.column;
  };
  const int step = group.of(1) * int{sizeof(T)};
  const auto ask_row = [&](int item) {
    const int has = !kMany || item < plan.items ? group.mine : 0;
    ahead.ask(kX, place(plan.in[0], item), step, has);
    if constexpr (kStages && !kLate) ahead.ask(kBesideX, place(plan.in[kOther], item), step, has);
  };
  wait_for_previous_kernel();
  ask_row(item);
  commit_copies();
  const auto ask_weights = [&](int which, const void* w) {
    if (!w || !settles) return;
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
  constexpr bool kMoves = kTeams && kWider;
  bool unsettled =
      kMoves || !plan.has_weights_of(sizeof(W)) || (kWider && left > (kCluster ? 1 : 2));
  const auto places = ahead.in_planes();
  const auto settle = [&] {
    settle_weights<T, W>(ahead, places, group, 0, plan.w, 1);
    if constexpr (kCentred) settle_weights<T, W>(ahead, places, group, 1, plan.b, 0);
  };
  if constexpr (kTeams) {
    wait_for_copies<0>();
    __syncwarp();  // other lanes asked for some of them
    if (unsettled && settles) settle();
    __syncthreads();
  }
#pragma unroll 1
  for (;; item += teams) {
    const bool real = !kMany || item < plan.items;
    const int has = real ? group.mine : 0;
    if constexpr (kLate) {
      ahead.ask(kBesideX, place(plan.in[kOther], item), step, has);
      commit_copies();
    }
    wait_for_copies<kLate>();
    if (kWider && !kTeams) __syncwarp();  // other lanes asked for some of the weights
    if constexpr (!kTeams && (kWider || sizeof(T) == 4)) {
      if (unsettled) {
        unsettled = false;
        settle();
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
          (kMoves ? places : ahead).template get<W, kWidth>(which, v).unpack(values);
        },
        [&](int v) {
          if constexpr (kLate)
            return ahead.template get<T, kWidth>(kBesideX, v);
          else
            return group.z[Group::kGateLast ? v : 0];
        },
        [&](int, const Vector<T, kWidth>& r) { store_vector(y, r), y += group.of(1); });
    if constexpr (kGathers) {
      if (group.lane_in == 0) {  // where its x was
        const Stats<float> s = Group::unscaled(stats);
        write_shared(ahead.slot(kX, 0, 0),
                     uint4{__float_as_uint(s.mean), __float_as_uint(s.mean_rest),
                           __float_as_uint(s.rstd), 0});
      }
      break;
    }
    if (real && group.lane_in == 0 && chunk == 0) group.write_stats(stats, item);
    if (!kTurns || --left == 0) break;
  }
  if constexpr (kGathers) {
    __syncthreads();
    const int thread = static_cast<int>(threadIdx.x), of_thread = unit * teams + thread;
    if (thread < teams && of_thread < plan.items) {
      const int first_lane = thread * group.lanes;
      const uint4 words =
          read_shared(shared_address(memory) + 16u * static_cast<uint32_t>(first_lane % kWarpSize) +
                      static_cast<uint32_t>(first_lane / kWarpSize) * plan.stage_bytes);
      Stats<float> s;
      s.mean = __uint_as_float(words.x), s.mean_rest = __uint_as_float(words.y);
      s.rstd = __uint_as_float(words.z);
      group.write_stats(s, of_thread);
    }
  }
#endif
}

/// How many groups a block or a cluster's team takes in turn, and teams; as one build measured them
/// on an H100. Each doubling of rounds cost a point of copy; but one group a cluster pays for the
/// weights each time: dear for LayerNorm, most in clusters of sixteen, and for halves where memory
/// is fast.
struct Turns {
  int rounds, teams = 1;
};
template <class T, class W>
Turns staying_turns(const Cuda& on, const ForwardPlan& plan, bool centred, Beside beside) {
  const bool plain = beside == Beside::nothing, gated = beside == Beside::gate_last;
  const bool sixteen = plan.cluster == 16, wide = sizeof(T) == 4;
  if constexpr (sizeof(W) > sizeof(T)) {
    if (centred && (plain || gated) && plan.chunks >= 32) {
      if (plain && plan.chunks > 32) return {.rounds = 32, .teams = 3};
      if (gated && plan.chunks > 64) return {.rounds = 16, .teams = 3};
      return {.rounds = 3, .teams = 2};
    }
    if (centred) return {(plain && plan.chunks > 6) || plan.cluster > 1 ? 4 : 2};
    return {plain && plan.chunks > 4 ? 2 : 1};
  }
  if (plan.cluster == 1) return {1};
  if (centred && wide && gated)
    return {.rounds = sixteen ? 16 : plan.cluster == 8 ? 2 : 1, .teams = 2};
  if (centred && wide && plain && sixteen) return {.rounds = 36, .teams = 2};
  if (centred) return {sixteen && wide ? 4 : gated && !sixteen ? 1 : 2};
  // An H200's memory is 6144 bits wide, an H100's 5120.
  const bool fast_memory = detail::properties(on.device).memoryBusWidth > 5120;
  if (!fast_memory) return {wide && sixteen && plain ? 2 : 1};
  return {sixteen || (!wide && beside != Beside::residual) ? 2 : 1};
}

template <class T>
void forward_staying(const Cuda& on, const NormForwardArgs& k, ForwardPlan plan) {
  if (plan.groups > 1)  // dense: each is a row to it
    for (ForwardRows* t : {&plan.in[0], &plan.in[1], &plan.in[2], &plan.y, &plan.h})
      t->row_bytes = t->group_bytes;
  plan.team_warps = plan.warps;
  plan.plane_bytes = static_cast<uint32_t>(16 * kWarpSize * plan.vecs);
  const auto run = [&]<class W, bool kCentred, Beside kBeside, Holder kHolder, bool kTeams>() {
    constexpr int kVecs = ForwardGroup<T, kCentred, kBeside, true>::kVecs;
    constexpr int kTensors = 1 + kStagesBeside<T, kCentred, kBeside>;
    constexpr int kParts = sizeof(W) / sizeof(T);
    const uint32_t weights = plan.plane_bytes * kParts * (kCentred ? 2 : 1);
    plan.stage_bytes = plan.plane_bytes * kTensors + (kTeams ? 0 : weights);
    if constexpr (kTeams) plan.warps = plan.teams * plan.team_warps;
    if constexpr (kHolder == Holder::warp) plan.teams = plan.warps * kWarpSize / plan.lanes;
    const auto kernel = norm_forward_staying_kernel<T, W, kCentred, kBeside, kHolder, kTeams>;
    const int threads = plan.warps * kWarpSize;
    // Vectors of weights that a lane does not have are read too.
    const size_t shared = static_cast<size_t>(plan.warps) * plan.stage_bytes +
                          (kTeams ? static_cast<size_t>(plan.team_warps) * weights : 0) +
                          static_cast<size_t>((kVecs - plan.vecs) * 16 * kWarpSize * kParts);
    int units = ceil_div(plan.items, plan.teams);
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
  const auto by_teams = [&]<class W, bool kCentred, Beside kBeside, Holder kHolder>() {
    const Turns turns = staying_turns<T, W>(on, plan, kCentred, kBeside);
    plan.rounds = turns.rounds, plan.teams = turns.teams;
    if constexpr (kCanTeam<W, kCentred, kBeside, kHolder>)
      if (plan.teams > 1) return run.template operator()<W, kCentred, kBeside, kHolder, true>();
    plan.teams = 1;
    run.template operator()<W, kCentred, kBeside, kHolder, false>();
  };
  const auto by_holder = [&]<class W, bool kCentred, Beside kBeside>() {
    if (plan.cluster > 1)
      return by_teams.template operator()<W, kCentred, kBeside, Holder::cluster>();
    plan.chunks > 1 ? by_teams.template operator()<W, kCentred, kBeside, Holder::block>()
                    : by_teams.template operator()<W, kCentred, kBeside, Holder::warp>();
  };
  by_member<T>(k, [&]<bool kCentred, Beside kBeside>() {
    if constexpr (kBeside != Beside::wide_residual)
      plan.has_weights_of(sizeof(T)) ? by_holder.template operator()<T, kCentred, kBeside>()
                                     : by_holder.template operator()<float, kCentred, kBeside>();
    return true;
  });
}

}  // namespace norma::norm_cuda
