#pragma once

#include <algorithm>

#include "norma/ops/norm/forward_meeting.cuh"

namespace norma::norm_cuda {

// A vector from and to any address of shared memory that E may have. It is written word by word,
// each in four turns of the banks, since neighbouring lanes' lie 16 bytes apart, and read so if
// kWords; else by vectors, whose bytes are then chosen.

template <bool kWords, class E, int kWidth>
__device__ __forceinline__ Vector<E, kWidth> load_skewed(const unsigned char* from) {
  Vector<E, kWidth> r;
  if constexpr (!kWords) {
    const uint32_t skew = shared_address(from) % 16;
#pragma unroll
    for (int i = 0; i < r.kWords; i += 4) {
      const auto* p = reinterpret_cast<const uint4*>(from - skew) + i / 4;
      const uint4 low = p[0], high = skew ? p[1] : low;
      uint32_t both[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}, taken[4];
      take_16_bytes(both, skew, taken);
#pragma unroll
      for (int j = 0; j < 4; ++j) r.words[i + j] = taken[j];
    }
  } else if constexpr (sizeof(E) == 4) {
#pragma unroll
    for (int i = 0; i < r.kWords; ++i) r.words[i] = reinterpret_cast<const uint32_t*>(from)[i];
  } else {
    const uint32_t odd = shared_address(from) & 2;
    const auto* words = reinterpret_cast<const uint32_t*>(from - odd);
    uint32_t low = words[0];
#pragma unroll
    for (int i = 0; i < r.kWords; ++i) {
      const uint32_t high = words[i + 1];
      r.words[i] = __funnelshift_r(low, high, 8 * odd);
      low = high;
    }
  }
  return r;
}
template <class E, int kWidth>
__device__ __forceinline__ void store_skewed(unsigned char* to, const Vector<E, kWidth>& v) {
  if constexpr (sizeof(E) == 4) {
#pragma unroll
    for (int i = 0; i < v.kWords; ++i) reinterpret_cast<uint32_t*>(to)[i] = v.words[i];
  } else {
    // Off 4 bytes, half a word at either end; else two halves make the last word.
    const uint32_t odd = shared_address(to) & 2;
    auto* words = reinterpret_cast<uint32_t*>(to + odd);
    auto* halves = reinterpret_cast<uint16_t*>(to);
    constexpr int kLast = Vector<E, kWidth>::kWords - 1;
#pragma unroll
    for (int i = 0; i < kLast; ++i) words[i] = __funnelshift_r(v.words[i], v.words[i + 1], 8 * odd);
    halves[odd ? 0 : 2 * kLast] = static_cast<uint16_t>(odd ? v.words[0] : v.words[kLast]);
    halves[2 * kLast + 1] = static_cast<uint16_t>(v.words[kLast] >> 16);
  }
}

// A warp's part of tensors off 16 bytes lies in shared memory as it does in memory: the bulk copy
// engine brings what lies on 16 bytes about it, and takes results to where they belong, but for the
// few bytes at either end that neighbours share.

__device__ __forceinline__ uint32_t skew_of(const void* p) {
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(p)) % 16;
}
/// Sends for `bytes` from `from` on, of a tensor that ends at `end`.
__device__ __forceinline__ void send_for(unsigned char* to, const unsigned char* from, int bytes,
                                         const unsigned char* end, SharedBarrier& landed) {
  const uint32_t skew = skew_of(from);
  from -= skew;
  uint32_t span = (skew + static_cast<uint32_t>(bytes) + 15) & ~15u;
  if (end - from < span) {  // nothing behind the tensor is touched
    span -= 16;
    for (int64_t i = span; i < end - from; ++i) to[i] = from[i];
  }
  landed.expect(span);
  if (span > 0) bulk_copy(to, from, span, landed);
}
/// Takes `bytes` to `to` from the same place about 16 bytes in shared memory.
template <class E>
__device__ __forceinline__ void send_back(unsigned char* to, const unsigned char* from, int bytes,
                                          int lane) {
  const int skew = static_cast<int>(skew_of(to));
  from += skew;
  const int head = min(bytes, (16 - skew) & 15), body = (bytes - head) & ~15;
#if __CUDA_ARCH__ >= 900
  if (lane == 0 && body > 0)
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to + head),
                 "r"(shared_address(from + head)), "r"(body)
                 : "memory");
#endif
  const int first = lane < 16 ? 0 : head + body, end = lane < 16 ? head : bytes;
  const int at = first + lane % 16 * int{sizeof(E)};
  if (at < end) *reinterpret_cast<E*>(to + at) = *reinterpret_cast<const E*>(from + at);
}

/// Until all results that this thread sent have been read.
__device__ __forceinline__ void wait_for_bulk_reads() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
#endif
}

/// Groups that begin anywhere, or are short: a warp's part of them is brought to shared memory in
/// one piece, read from there by vectors shifted into place, and written to memory in one piece.
///   bytes  as of norm_forward_held_kernel
///   bound  memory; for short groups arithmetic once a group
template <class T, bool kCentred, Beside kBeside, Holder kHolder>
__global__ void __launch_bounds__(kHeldWarps* kWarpSize, sizeof(T) == 2 ? 3 : 2)
    norm_forward_skewed_kernel(const __grid_constant__ ForwardPlan plan) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // older ones are spared the compilation
  using Group = ForwardGroup<T, kCentred, kBeside, kHolder != Holder::warp, false, true>;
  using Meeting = HeldMeeting<kHolder>;
  using H = typename Group::H;
  constexpr int kWidth = Group::kWidth;
  constexpr bool kTogether = kHolder != Holder::warp,
                 kTurns = kTogether && kBeside == Beside::nothing;
  constexpr bool kWords = sizeof(T) == 4 || !kTogether;
  __shared__ typename Meeting::Slots slots;
  __shared__ SharedBarrier all_landed[kTurns ? 2 : 1][kHeldWarps];
  extern __shared__ __align__(128) unsigned char memory[];
  const int warp = threadIdx.x / kWarpSize;
  int first = static_cast<int>(blockIdx.x), chunk = 0;
  if constexpr (kHolder == Holder::block) chunk = warp;
  if constexpr (kHolder == Holder::cluster) {
    chunk = (first & (plan.cluster - 1)) * plan.warps + warp;
    first >>= 31 - __clz(plan.cluster);
  }
  Group group(plan, chunk);
  int left = 1;  // turns
  if constexpr (kTurns) {
    left = plan.turns_of(first);
    first = plan.first_of(first);
  } else if constexpr (!kTogether) {
    first = (first * plan.warps + warp) * plan.at_once * plan.rounds;
  }
  const int groups = kTogether ? 1 : max(0, min(plan.at_once * plan.rounds, plan.items - first));
  const int whole = plan.size - plan.rest, first_column = group.column - group.lane_in * kWidth;
  const int begin = kTogether ? min(first_column, whole) : 0;  // of the last chunk, be it the rest
  const int elements = kTogether ? group.terms : groups * plan.size;
  const auto begin_of = [&](const ForwardRows& t, int item) {
    return t.group(item, plan.groups) + begin * t.element;
  };
  Meeting meet{slots, plan, group.lane, chunk};
  meet.start();

  unsigned char* const base = memory + static_cast<uint32_t>(warp) * plan.stage_bytes;
  if (group.lane == 0) {
    for (auto& landed : all_landed)
      landed[warp].init(1 + Group::kResidual + (Group::kGateFirst || Group::kGateLast));
    publish_barriers();
  }
  __syncwarp();
  const auto ahead = Ahead<Group::kVecs, 0>::of_warp(
      shared_address(base) + plan.weights + static_cast<uint32_t>(16 * group.lane), 1);
  constexpr bool kAsks = kHolder == Holder::cluster || kTurns;
  const bool asked = kAsks && plan.weights > 0;
  if (asked) {
    const auto ask = [&](int which, const void* w) {
      ahead.template ask<kHolder != Holder::cluster>(which, static_cast<const T*>(w) + group.column,
                                                     group.of(1) * int{sizeof(T)}, group.mine);
    };
    if (plan.w) ask(0, plan.w);
    if (plan.b) ask(1, plan.b);
    commit_copies();
  }
  const auto ask_groups = [&](int item, uint32_t stage) {
    if (group.lane >= 3 || plan.in[group.lane].element == 0) return;
    const ForwardRows& t = plan.in[group.lane];
    SharedBarrier& landed = all_landed[stage][warp];
    if (elements > 0)
      send_for(base + stage * plan.turn_bytes + plan.at[group.lane], begin_of(t, item),
               elements * t.element, t.data + plan.bytes[group.lane], landed);
    else
      landed.expect(0);
  };
  ask_groups(first, 0);
#pragma unroll 1
  for (uint32_t turn = 0;; ++turn, ++first) {
    const uint32_t stage = kTurns ? turn & 1 : 0;
    unsigned char* const here = base + stage * plan.turn_bytes;
    all_landed[stage][warp].wait(turn >> 1 & 1);
    __syncwarp();

    // Results take the place of what was read, at most 15 bytes before it: then they never lie over
    // groups of later rounds.
    const auto place_of = [&](const ForwardRows& out, int in) {
      return here + plan.at[in] -
             (skew_of(begin_of(out, first)) > skew_of(begin_of(plan.in[in], first)) ? 16 : 0);
    };
    unsigned char* const all_y = place_of(plan.y, 0);
    unsigned char* const all_h = Group::kResidual ? place_of(plan.h, 1) : nullptr;
    const auto put = [&]<class E>(unsigned char* to, int v, const Vector<E, kWidth>& from) {
      to += group.of(v) * int{sizeof(E)};
      if (plan.even)
        store_vector(reinterpret_cast<E*>(to), from);
      else
        store_skewed(to, from);
    };
    // This lane's element behind the vectors, from its first one on.
    const int rest_at = whole - begin + group.lane_in - group.lane_in * kWidth;
    const int team = kTogether ? 0 : group.lane / group.lanes;
#pragma unroll 1
    for (int round = 0; round < groups; round += plan.at_once) {
      const bool real = kTogether || (team < plan.at_once && round + team < groups);
      const int in_stage = real ? round + team : 0, item = first + in_stage;
      const int has = real ? group.mine : 0;
      const int at = in_stage * plan.size + group.lane_in * kWidth;  // this lane's first element
      const auto place = [&](const ForwardRows& t, unsigned char* all) {
        return all + skew_of(begin_of(t, first)) + at * t.element;
      };
      const unsigned char* const from[3] = {place(plan.in[0], here + plan.at[0]),
                                            place(plan.in[1], here + plan.at[1]),
                                            place(plan.in[2], here + plan.at[2])};
      unsigned char* const h = Group::kResidual ? place(plan.h, all_h) : nullptr;
      const auto load = [&]<class E>(const unsigned char* all, int v) {
        const unsigned char* p = all + group.of(v) * int{sizeof(E)};
        return plan.even ? load_vector<From::anywhere, kWidth>(reinterpret_cast<const E*>(p))
                         : load_skewed<kWords, E, kWidth>(p);
      };
      const bool has_rest = real && group.owns_rest;
      const auto load_rest = [&]<class E>(const unsigned char* all) {
        return has_rest ? convert<float>(reinterpret_cast<const E*>(all)[rest_at]) : 0.0f;
      };
      const float x = load_rest.template operator()<T>(from[0]);
      float beside = 0;
      if constexpr (Group::kResidual) beside = load_rest.template operator()<H>(from[1]);
      if constexpr (Group::kGateFirst || Group::kGateLast)
        beside = load_rest.template operator()<T>(from[2]);
      group.take(
          has,
          [&]<class E>(int which, int v) { return load.template operator()<E>(from[which], v); },
          [&](int v, const Vector<H, kWidth>& r) { put(h, v, r); });
      group.take_rest(has_rest, x, beside, [&](H r) { reinterpret_cast<H*>(h)[rest_at] = r; });
      if constexpr (kTurns) {
        if (left > 1) {  // where the results before these were, once they are read
          wait_for_bulk_reads();
          __syncwarp();
          ask_groups(first + 1, stage ^ 1);
        }
      }
      const Stats<float> stats = group.statistics(has, meet, [&] {
        if constexpr (Group::kResidual)
          __syncwarp();  // a vector's ends are its neighbours' to write
        const unsigned char* again = Group::kResidual ? h : from[0];
        group.take_again(
            has, [&]<class E>(int, int v) { return load.template operator()<E>(again, v); });
        group.rest = load_rest.template operator()<H>(again);
      });
      const int first_weight = plan.own_weights ? item % plan.groups * plan.size : 0;
      unsigned char* const y = place(plan.y, all_y);
      __syncwarp();  // all have read what neighbours write
      const auto put_y = [&](int v, const Vector<T, kWidth>& r) { put(y, v, r); };
      if (asked) {
        wait_for_all_copies();
        group.template write_by<kCentred, false>(
            stats, has,
            [&](int which, int v, float(&values)[kWidth]) {
              ahead.template get<T, kWidth>(which, v).unpack(values);
            },
            [&](int v) { return group.z[Group::kGateLast ? v : 0]; }, put_y);
      } else {
        group.write(
            stats, has,
            [&]<class E>(int which, int v) {
              const E* p = static_cast<const E*>(which ? plan.b : plan.w) + first_weight +
                           group.column + group.of(v);
              if (v >= has) return Vector<E, kWidth>{};
              return skew_of(p) == 0 ? load_vector<From::cached, kWidth>(p)
                                     : load_part<kWidth>(p, kWidth);
            },
            put_y);
      }
      if (has_rest)
        reinterpret_cast<T*>(y)[rest_at] = group.y_of_rest(stats, [&](int which) {
          const void* w = which ? plan.b : plan.w;
          const int at = first_weight + whole + group.lane_in;
          return plan.weight_bytes == sizeof(T) ? convert<float>(static_cast<const T*>(w)[at])
                                                : static_cast<const float*>(w)[at];
        });
      if (real && group.lane_in == 0 && chunk == 0) group.write_stats(stats, item);
    }
    copies_follow_writes();
    __syncwarp();
    if (elements > 0) {
      send_back<T>(begin_of(plan.y, first), all_y, elements * int{sizeof(T)}, group.lane);
      if constexpr (Group::kResidual)
        send_back<H>(begin_of(plan.h, first), all_h, elements * int{sizeof(H)}, group.lane);
      asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    }
    if (!kTurns || --left == 0) break;
  }
  wait_for_bulk_reads();
#endif
}

/// Runs it, or says that the sizes do not fit.
template <class T>
bool forward_skewed(const Cuda& on, const NormForwardArgs& k) {
  const int64_t size = k.options.group == 0 ? k.x.cols : k.options.group;
  constexpr int64_t kMost = int64_t{1} << 30;  // groups are counted in int
  if (detail::properties(on.device).major < 9 || k.x.rows * (k.x.cols / size) > kMost) return false;
  const RowOrder order = forward_order(size, kLaneWidth<T>);
  ForwardPlan plan = forward_plan<T>(k, order);
  plan.rest = order.rest;
  const int chunks = plan.chunks;
  const bool dense = plan.all_dense();
  plan.even = is_aligned_forward<T>(k, size);
  plan.at_once = dense ? kWarpSize / plan.lanes : 1;
  int64_t elements = int64_t{plan.vecs} * kWarpSize * kLaneWidth<T> + plan.rest;
  if (chunks == 1) {
    // Some KB a warp, so that enough is on its way; but all multiprocessors have work.
    constexpr int kStage = 5 << 10, kWarpsOfAll = 132 * 32;
    const int64_t once = plan.at_once * size;
    const int bytes = plan.in[0].element + plan.in[1].element + plan.in[2].element;
    // Of aligned ones only half types without a gate gain by it.
    if (dense && (!plan.even || (sizeof(T) == 2 && !k.z)))
      plan.rounds = static_cast<int>(std::clamp<int64_t>(
          std::min(kStage / (once * bytes),
                   int64_t{plan.items} / plan.at_once / as_pretended(on, kWarpsOfAll)),
          1, 16));
    elements = plan.rounds * once;
  }
  const ConstRows* const tensors[] = {&k.x, &k.residual, &k.z};
  for (int i = 0; i < 3; ++i) {
    const ForwardRows& t = plan.in[i];
    if (t.element == 0) continue;
    plan.bytes[i] = (tensors[i]->rows - 1) * t.row_bytes + tensors[i]->cols * t.element;
    plan.at[i] = plan.stage_bytes + 16;
    plan.stage_bytes += static_cast<uint32_t>((elements * t.element + 63) / 16 * 16);
  }
  const auto go = [&]<Holder kHolder>(int units) {
    return by_member<T>(k, [&]<bool kCentred, Beside kBeside>() {
      const auto kernel = norm_forward_skewed_kernel<T, kCentred, kBeside, kHolder>;
      if (kHolder != Holder::warp && plan.rounds > 1)
        units = plan.take_turns(
            units,
            resident_clusters(on, reinterpret_cast<const void*>(kernel), plan.warps * kWarpSize,
                              static_cast<size_t>(plan.warps) * plan.stage_bytes, plan.cluster));
      launch(on,
             {.grid = dim3(static_cast<unsigned>(units * plan.cluster)),
              .block = dim3(static_cast<unsigned>(plan.warps * kWarpSize)),
              .shared = static_cast<size_t>(plan.warps) * plan.stage_bytes,
              .cluster = static_cast<unsigned>(plan.cluster)},
             kernel, plan);
      return true;
    });
  };
  if (chunks == 1) {
    plan.warps = 4;
    return go.template operator()<Holder::warp>(
        ceil_div(plan.items, plan.warps * plan.at_once * plan.rounds));
  }
  plan.warps = chunks;
  const bool block = chunks <= kHeldWarps;
  // Blocks of float32, and their LayerNorm's clusters, were slower in turn.
  if (!k.z && !k.residual && (sizeof(T) == 2 || (!block && k.options.kind != NormKind::layer)))
    plan.rounds = 4;
  if (plan.rounds > 1) plan.turn_bytes = plan.stage_bytes, plan.stage_bytes *= 2;
  while (plan.warps > kHeldWarps) plan.cluster *= 2, plan.warps = ceil_div(chunks, plan.cluster);
  // As in norm_forward_held_kernel: clusters would wait for the second cache behind their sums. But
  // LayerNorm with a gate lost 4 % by it, and float32 beside 16 bits is slow to ask for.
  if (!plan.own_weights && plan.has_weights_of(sizeof(T)) && on_16_bytes(k.w) && on_16_bytes(k.b) &&
      !(k.b && k.z) && (!block || (!k.z && !k.residual))) {
    constexpr int kVecs = kForwardChunk / (kWarpSize * kLaneWidth<T>);
    plan.weights = plan.stage_bytes;
    plan.stage_bytes += static_cast<uint32_t>(Ahead<kVecs, 0>::bytes_of_warp(1, plan.b));
  }
  if (block) return go.template operator()<Holder::block>(plan.items);
  if (plan.cluster > 16 || chunks > kHeldChunks || int64_t{plan.items} * plan.cluster > kMost)
    return false;
  plan.ranks = ceil_div(chunks, plan.warps);
  return go.template operator()<Holder::cluster>(plan.items);
}

}  // namespace norma::norm_cuda
