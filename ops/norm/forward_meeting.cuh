#pragma once

#include "norma/core/cuda/async_copy.cuh"
#include "norma/ops/norm/cluster.cuh"
#include "norma/ops/norm/forward_group.cuh"

// How the warps of a forward's group tell one another their sums, and where a lane keeps what it
// will read later.

namespace norma::norm_cuda {

inline constexpr int kHeldChunks = 256;  // at most, of a group

/// Of a group's warps in one block or a cluster: each tells all others its sums. Two sets of slots
/// suffice: who sends those of a meeting has those of the one before, and so all have read the one
/// before that. In a cluster a barrier counts the bytes that come; one that all blocks arrive at
/// would wait for their stores to global memory too. kReady: a cluster has more than one block, and
/// who meets has waited for them.
template <Holder kHolder, bool kReady = false>
struct HeldMeeting {
  static constexpr int kMost = kHolder == Holder::cluster ? kHeldChunks : kHeldWarps;
  struct Slots {
    float2 sums[2][kMost];
    SharedBarrier met[2];
  };
  Slots& slots;
  const ForwardPlan& plan;
  const int lane, chunk;
  uint32_t meetings = 0;

  __device__ __forceinline__ void start() {
    if (kHolder != Holder::cluster || plan.cluster == 1) return;
    if (threadIdx.x == 0) {
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
    if (kHolder == Holder::cluster && (kReady || plan.cluster > 1)) {
      if (!kReady && meetings == 0) cluster_wait();  // all blocks' barriers are there
      SharedBarrier& met = slots.met[set];
      if (meetings > 1 && threadIdx.x == 0)
        met.expect(static_cast<uint32_t>(plan.chunks) * sizeof(float2));
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
/// at its own columns come to shared memory, where no other lane needs them.
template <int kVecs, int kTensors>
struct Ahead {
  static constexpr int kPlane = 16 * kWarpSize * kVecs;  ///< bytes of a warp's vectors of 16 bytes
  uint32_t mine;                                         ///< this lane's, in shared memory
  int parts;  ///< of 16 bytes, of a vector of weights: 1, or 2 of float beside 16 bits

  static int bytes_of_warp(int part_count, bool bias) {
    return kPlane * (kTensors + part_count * (bias ? 2 : 1));
  }
  // Where the two parts of a lane's weights lie: side by side, as they come from memory.
  uint32_t first_part = 16 * (threadIdx.x % kWarpSize), second_part = first_part + 16;

  /// The parts a plane each, where neighbours' reads meet in no bank of shared memory.
  __device__ __forceinline__ Ahead in_planes() const {
    Ahead r = *this;
    r.first_part = 0, r.second_part = 16 * kWarpSize;
    return r;
  }
  /// Of w (0), b (1) or a tensor (from 2 on).
  __device__ __forceinline__ uint32_t slot(int which, int v, int part) const {
    const bool in_parts = which < 2 && parts == 2;
    const int at = kPlane * (which >= 2 ? which - 2 : kTensors + (which == 1 ? parts : 0));
    return mine + static_cast<uint32_t>(at + 16 * kWarpSize * v * (in_parts ? 2 : 1)) +
           (!in_parts ? 0
            : part    ? second_part
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
