#pragma once

#include "norma/core/cuda/async_copy.cuh"
#include "norma/ops/norm/cluster.cuh"
#include "norma/ops/norm/forward_group.cuh"

// How the warps of a forward's group tell one another their sums, and where a lane keeps what it
// will read later.

namespace norma::norm_cuda {

inline constexpr int kHeldChunks = 256;              // at most, of a group
inline constexpr int kMostTeams = 3;                 // of a cluster
inline constexpr int kTeamChunks = 16 * kHeldWarps;  // at most, of a group that a team holds

/// Of a group's warps in one block or a cluster: each tells all others its sums. Two sets of slots
/// suffice: who sends those of a meeting has those of the one before, and so all have read the one
/// before that. In a cluster a barrier counts the bytes that come; one that all blocks arrive at
/// would wait for their stores to global memory too. kReady: a cluster has more than one block, and
/// who meets has waited for them. kTeams: the cluster's warps are several teams, each with a group
/// of its own.
template <Holder kHolder, bool kReady = false, bool kTeams = false>
struct HeldMeeting {
  static constexpr bool kCluster = kHolder == Holder::cluster;
  static constexpr int kMost = !kCluster ? kHeldWarps : kTeams ? kTeamChunks : kHeldChunks;
  struct Slots {
    float2 sums[2][kMost];
    SharedBarrier met[2];
  };
  Slots& slots;  ///< the team's
  const ForwardPlan& plan;
  const int lane, chunk;
  int team = 0;  ///< of the block
  uint32_t meetings = 0;

  /// One thread of the team in each block.
  __device__ __forceinline__ bool leads() const {
    return static_cast<int>(threadIdx.x) == (kTeams ? team * plan.team_warps * kWarpSize : 0);
  }
  __device__ __forceinline__ void start() {
    if (!kCluster || plan.cluster == 1) return;
    if (leads()) {
      for (SharedBarrier& b : slots.met) {
        b.init(1);
        b.expect(static_cast<uint32_t>(plan.chunks) * sizeof(float2));
      }
      publish_barriers();
    }
    __syncwarp();
    cluster_arrive_relaxed();
  }
  __device__ __forceinline__ const float2* operator()(float2 mine) {
    const uint32_t set = meetings & 1;
    float2* slot = &slots.sums[set][chunk];
    if (kCluster && (kReady || plan.cluster > 1)) {
      if (!kReady && meetings == 0) cluster_wait();  // all blocks' barriers are there
      SharedBarrier& met = slots.met[set];
      if (meetings > 1 && leads()) met.expect(static_cast<uint32_t>(plan.chunks) * sizeof(float2));
      if (lane < plan.ranks && chunk < plan.chunks)
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

/// What a lane will read later, asked for early: the vectors of kTensors tensors and of the weights
/// at its own columns come to shared memory, where no other lane needs them, but that teams share
/// the weights.
template <int kVecs, int kTensors>
struct Ahead {
  static constexpr uint32_t kPlane = 16 * kWarpSize * kVecs;  ///< of kVecs vectors of 16 bytes
  uint32_t mine, weights;                                     ///< this lane's, in shared memory
  uint32_t plane;  ///< bytes of a warp's vectors of 16 bytes
  int parts;       ///< of 16 bytes, of a vector of weights: 1, or 2 of float beside 16 bits
  // Where the two parts of a lane's weights lie: side by side, as they come from memory.
  uint32_t first_part = 16 * (threadIdx.x % kWarpSize), second_part = first_part + 16;

  /// A warp's weights behind its tensors.
  static __device__ __forceinline__ Ahead of_warp(uint32_t mine, int parts) {
    return {mine, mine + kTensors * kPlane, kPlane, parts};
  }
  static int bytes_of_warp(int part_count, bool bias) {
    return int{kPlane} * (kTensors + part_count * (bias ? 2 : 1));
  }

  /// The parts a plane each, where neighbours' reads meet in no bank of shared memory.
  __device__ __forceinline__ Ahead in_planes() const {
    Ahead r = *this;
    r.first_part = 0, r.second_part = 16 * kWarpSize;
    return r;
  }
  /// Of w (0), b (1) or a tensor (from 2 on).
  __device__ __forceinline__ uint32_t slot(int which, int v, int part) const {
    const auto at = static_cast<uint32_t>(16 * kWarpSize * v);
    if (which >= 2) return mine + plane * static_cast<uint32_t>(which - 2) + at;
    const auto n = static_cast<uint32_t>(parts);
    return weights + plane * (which == 1 ? n : 0) + at * n +
           (n == 1 ? 0
            : part ? second_part
                   : first_part);
  }
  /// From this lane's first vector on, `step` bytes from one to the next. kCached: by way of the
  /// first cache.
  template <bool kCached = false>
  __device__ __forceinline__ void ask(int which, const void* from, int step, int has) const {
    const auto* p = static_cast<const unsigned char*>(from);
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      if (v >= has) continue;
      if constexpr (kCached)
        copy_16_cached(slot(which, v, 0), p + v * step);
      else
        copy_16(slot(which, v, 0), p + v * step);
    }
  }
  /// Weights of two parts, `elements` from the first lane's first on: the lanes of a group ask for
  /// neighbouring pieces of memory, to lie so in shared memory, each for whom it belongs to. By
  /// their own, 32 bytes apart, each would be a request of its own to the second cache. Who waits
  /// for them meets the warp then.
  template <bool kCached = false>
  __device__ __forceinline__ void ask_pieces(int which, const float* from, int elements, int lanes,
                                             int lane_in) const {
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int piece = half * lanes + lane_in, at = 4 * (2 * v * lanes + piece);
        if (at >= elements) continue;
        const uint32_t to = slot(which, v, 0) + static_cast<uint32_t>(16 * (piece - 2 * lane_in));
        if constexpr (kCached)
          copy_16_cached(to, from + at);
        else
          copy_16(to, from + at);
      }
    }
  }
  template <class E, int kWidth>
  __device__ __forceinline__ void put(int which, int v, const Vector<E, kWidth>& r) const {
#pragma unroll
    for (int part = 0; part < r.kWords / 4; ++part)
      write_shared(slot(which, v, part), make_uint4(r.words[4 * part], r.words[4 * part + 1],
                                                    r.words[4 * part + 2], r.words[4 * part + 3]));
  }
  template <class E, int kWidth>
  __device__ __forceinline__ Vector<E, kWidth> get(int which, int v) const {
    Vector<E, kWidth> r;
#pragma unroll
    for (int part = 0; part < r.kWords / 4; ++part) {
      const uint4 q = read_shared(slot(which, v, part));
      r.words[4 * part] = q.x, r.words[4 * part + 1] = q.y;
      r.words[4 * part + 2] = q.z, r.words[4 * part + 3] = q.w;
    }
    return r;
  }
};

}  // namespace norma::norm_cuda
