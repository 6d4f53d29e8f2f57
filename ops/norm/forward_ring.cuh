#pragma once

#include "norma/ops/norm/cluster.cuh"
#include "norma/ops/norm/forward_held.cuh"

namespace norma::norm_cuda {

/// How norm_forward_ring_kernel runs. A slice is a block's part of a group.
struct ForwardRingPlan {
  HeldPlan held;
  int cluster = 1;  ///< blocks a group
  int warps = 1;    ///< of a block, with a chunk each
  int stages = 3;
  int lag = 0;  ///< groups later than it was read a stage is sent for anew
  uint32_t x_bytes = 0, residual_bytes = 0, stage_bytes = 0;
  uint32_t w_bytes = 0, b_bytes = 0;  ///< of slices of the weights that stay in shared memory
  uint32_t told_bytes = 0;            ///< of the sums of a group's chunks
  size_t shared = 0;
};

inline constexpr int kForwardRingWarps = 16;  // of a block at most
inline constexpr int kTold = 4;  ///< sets of sums; of groups that are scaled two more: see below
inline constexpr int kLargest = kTold, kToldAgain = kTold + 1, kToldAll = kTold + 2;

/// The barriers of a ring: of stages, and of sums on their way.
struct ForwardRingBarriers {
  Barrier full[8], empty[8], told[kToldAll];
};

/// Where the ring's next group is, and the parity of its barriers' phase.
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

/// Longer groups. Blocks live for the whole call, alone or in clusters of two to sixteen that share
/// a group. The bulk copy engine brings slices of groups into a ring of stages in shared memory; a
/// warp reads its chunk of group n, sends its sums to every block of the cluster, and only then
/// finishes group n − 1, whose sums have come meanwhile, reading its chunk again: nobody waits, for
/// memory or for others.
///   Four sets of sums suffice: who sends those of group n has finished group n − 2, for which all
///   others had sent theirs, and so had read those of group n − 4.
template <class T, bool kGated>
__global__ void __launch_bounds__(kForwardRingWarps* kWarpSize, 1)
    norm_forward_ring_kernel(const __grid_constant__ NormForwardArgs k,
                             const __grid_constant__ ForwardRingPlan plan) {
#if __CUDA_ARCH__ >= 900
  using Group = HeldGroup<T, kGated, true, Holder::ring>;
  __shared__ ForwardRingBarriers barriers;
  extern __shared__ __align__(128) unsigned char memory[];
  unsigned char *kept_w = memory, *kept_b = kept_w + plan.w_bytes, *told = kept_b + plan.b_bytes;
  unsigned char* stages = told + kToldAll * plan.told_bytes;
  const HeldPlan& held = plan.held;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const uint32_t rank = plan.cluster > 1 ? cluster_rank() : 0;
  const int chunk = static_cast<int>(rank) * plan.warps + warp;
  Group group{k, held, lane, Group::columns_of(held, chunk, lane)};
  const int per_chunk = held.order.vecs * group.columns.step;
  const int slice_first = static_cast<int>(rank) * plan.warps * per_chunk;
  const int in_slice =
      max(0, min(static_cast<int>(held.order.n) - slice_first, plan.warps * per_chunk));
  const int local = group.columns.first - slice_first;  // of this thread, in the slice
  const int64_t first_item = blockIdx.x / plan.cluster, step = gridDim.x / plan.cluster;
  const auto element_of = [](DType t) {
    return static_cast<uint32_t>(t == dtype_of<T> ? sizeof(T) : 4);
  };

  // One thread sends for slices; the barrier of their stage counts the bytes.
  const auto send_for = [&](int64_t item, int stage) {
    const GroupPlace p(item, held.groups, held.order.n);
    unsigned char* to = stages + static_cast<uint32_t>(stage) * plan.stage_bytes;
    const auto bytes = [&](const ConstRows& t) {
      return t ? static_cast<uint32_t>(in_slice) * element_of(t.dtype) : 0;
    };
    barriers.full[stage].arrive_expecting(bytes(k.x) + bytes(k.z) + bytes(k.residual));
    const auto copy = [&](const ConstRows& t, uint32_t offset) {
      if (t && in_slice > 0)
        bulk_copy(to + offset,
                  Group::address(t.data, t.dtype, p.row * t.row_stride + p.first + slice_first),
                  bytes(t), barriers.full[stage]);
    };
    copy(k.x, 0);
    copy(k.residual, plan.x_bytes);
    copy(k.z, plan.x_bytes + plan.residual_bytes);
  };
  if (threadIdx.x == 0) {
    for (int s = 0; s < plan.stages; ++s)
      barriers.full[s].init(1), barriers.empty[s].init(plan.warps);
    for (Barrier& b : barriers.told) b.init(plan.cluster == 1 ? plan.warps : 1);
    barriers_are_visible();
    for (int s = 0; s < plan.stages; ++s)
      if (first_item + s * step < held.items) send_for(first_item + s * step, s);
  }
  __syncthreads();
  if (plan.cluster > 1) cluster_sync();  // all blocks have started: others may write to them

  // Weights that all groups share stay here, each thread's own.
  const auto keep = [&](const ConstVec& t, unsigned char* to) {
    const auto element = static_cast<int>(element_of(t.dtype));
#pragma unroll 1
    for (int v = 0; v < Group::kVecs; ++v)
#pragma unroll 1
      for (int byte = 0; byte < group.count(v) * element; byte += 16) {
        const int at = (local + v * group.columns.step) * element + byte;
        *reinterpret_cast<uint4*>(to + at) = *reinterpret_cast<const uint4*>(
            static_cast<const unsigned char*>(t.data) + slice_first * element + at);
      }
  };
  if (plan.w_bytes > 0) keep(k.w, kept_w);
  if (plan.b_bytes > 0) keep(k.b, kept_b);

  const auto told_in = [&](int set) {
    return reinterpret_cast<float4*>(told + static_cast<uint32_t>(set) * plan.told_bytes);
  };
  const auto tell = [&](int set, const ChunkSums<float>& mine) {
    const float4 v = make_float4(mine.mean, mine.rest, mine.squares, 0);
    float4* slot = told_in(set) + chunk;
    if (plan.cluster == 1) {
      if (lane == 0) {
        *slot = v;
        barriers.told[set].arrive();
      }
      return;
    }
    if (threadIdx.x == 0) barriers.told[set].arrive_expecting(plan.told_bytes);
    if (lane < plan.cluster)
      send_counted(slot, v, &barriers.told[set], static_cast<uint32_t>(lane));
  };
  const auto sums_in = [&](int set) {
    return [all = told_in(set)](int c) {
      const float4 v = all[c];
      return ChunkSums<float>{v.x, v.y, v.z};
    };
  };
  const auto read = [&](const GroupPlace& p, int stage, bool writes_h) {
    const unsigned char* x = stages + static_cast<uint32_t>(stage) * plan.stage_bytes;
    const unsigned char *residual = x + plan.x_bytes, *z = residual + plan.residual_bytes;
    group.read(p, reinterpret_cast<const T*>(x) + local,
               k.z ? reinterpret_cast<const T*>(z) + local : nullptr,
               k.residual ? Group::address(residual, k.residual.dtype, local) : nullptr, writes_h);
  };
  const auto weight = [&](const ConstVec& t, const GroupPlace& p, uint32_t kept,
                          const unsigned char* here) {
    return kept > 0 ? Group::address(here, t.dtype, local) : group.first_of(t, p);
  };

  RingPlace place, before, freed;
  uint32_t scaled = 0, again = 0;  // groups that went these ways
#pragma unroll 1
  for (int64_t n = 0;; ++n) {
    const int64_t item = first_item + n * step, item_before = item - step;
    if (item < held.items) {
      barriers.full[place.stage].wait(place.parity);
      read(GroupPlace(item, held.groups, held.order.n), place.stage, true);
      tell(static_cast<int>(n % kTold), group.sums());
    }
    if (n > 0) {
      const GroupPlace p(item_before, held.groups, held.order.n);
      read(p, before.stage, false);
      const auto set = static_cast<int>((n - 1) % kTold);
      barriers.told[set].wait(static_cast<uint32_t>((n - 1) / kTold & 1));
      const Stats<float> stats = group.statistics(
          sums_in(set),
          [&](uint32_t bits) {
            tell(kLargest, {__uint_as_float(bits), 0, 0});
            barriers.told[kLargest].wait(scaled++ & 1);
            for (int c = 0; c < held.order.chunks; ++c)
              bits = max(bits, __float_as_uint(told_in(kLargest)[c].x));
            return bits;
          },
          [&](const ChunkSums<float>& sums) {
            tell(kToldAgain, sums);
            barriers.told[kToldAgain].wait(again++ & 1);
            return sums_in(kToldAgain);
          });
      if (threadIdx.x == 0 && rank == 0) group.write_stats(stats, p.stat);
      group.write(p, stats, weight(k.w, p, plan.w_bytes, kept_w),
                  weight(k.b, p, plan.b_bytes, kept_b), true);
      __syncwarp();
      if (lane == 0) barriers.empty[before.stage].arrive();
      // A stage is free when all warps have read it; with a lag that is long ago.
      const int64_t next = item_before + (plan.stages - plan.lag) * step;
      if (threadIdx.x == 0 && n > plan.lag && next < held.items) {
        barriers.empty[freed.stage].wait(freed.parity);
        send_for(next, freed.stage);
        freed.advance(plan.stages);
      }
    }
    if (item >= held.items) break;
    before = place;
    place.advance(plan.stages);
  }
#endif
}

/// A ring for the groups of k, if one fits: the smallest cluster that leaves room for stages and,
/// where all groups share them, for the weights.
template <class T>
bool plan_ring(const Cuda& on, const NormForwardArgs& k, ForwardRingPlan& plan) {
  const cudaDeviceProp& device = detail::properties(on.device);
  const HeldPlan& held = plan.held;
  if (!held.aligned || held.items == 0 || device.major < 9) return false;
  constexpr size_t kMemory = 226 << 10;
  const auto bytes = [](const auto& t) { return t ? size_of(t.dtype) : 0; };
  const int64_t element = size_of(k.x.dtype) + bytes(k.z) + bytes(k.residual);
  const bool shared_weights = held.groups == 1 || (k.w ? k.w : k.b).n == held.order.n;
  int least_cluster = 1;  // few groups are spread over all multiprocessors
  while (least_cluster < 16 && held.items * least_cluster * 2 <= device.multiProcessorCount)
    least_cluster *= 2;
  plan.told_bytes = static_cast<uint32_t>(held.order.chunks) * sizeof(float4);
  for (const int least_stages : {4, 3})
    for (const bool keeps : {true, false})
      for (plan.cluster = least_cluster; plan.cluster <= 16; plan.cluster *= 2) {
        plan.warps = held.order.chunks / plan.cluster;
        if (plan.warps > kForwardRingWarps || (keeps && !shared_weights)) continue;
        const int64_t slice = int64_t{plan.warps} * held.order.vecs * kWarpSize * kLaneWidth<T>;
        plan.x_bytes = static_cast<uint32_t>(slice * size_of(k.x.dtype));
        plan.residual_bytes = static_cast<uint32_t>(slice * bytes(k.residual));
        plan.stage_bytes = static_cast<uint32_t>(slice * element);
        plan.w_bytes = static_cast<uint32_t>(keeps ? slice * bytes(k.w) : 0);
        plan.b_bytes = static_cast<uint32_t>(keeps ? slice * bytes(k.b) : 0);
        const size_t others = plan.w_bytes + plan.b_bytes + kToldAll * plan.told_bytes;
        if (others + least_stages * plan.stage_bytes > kMemory) continue;
        plan.stages = static_cast<int>(std::min<size_t>(8, (kMemory - others) / plan.stage_bytes));
        plan.lag = plan.stages > 4 ? 1 : 0;
        plan.shared = others + static_cast<size_t>(plan.stages) * plan.stage_bytes;
        return true;
      }
  return false;
}

/// Runs it, or says that the sizes do not fit.
template <class T>
bool forward_ring(const Cuda& on, const NormForwardArgs& k, const HeldPlan& held) {
  ForwardRingPlan plan{.held = held};
  if (!plan_ring<T>(on, k, plan)) return false;
  const auto kernel = k.z ? norm_forward_ring_kernel<T, true> : norm_forward_ring_kernel<T, false>;
  const int threads = plan.warps * kWarpSize;
  const int64_t clusters =
      std::min<int64_t>(held.items, resident_clusters(on, reinterpret_cast<const void*>(kernel),
                                                      threads, plan.shared, plan.cluster));
  if (clusters < 1) return false;
  launch(on,
         {.grid = dim3(static_cast<unsigned>(clusters * plan.cluster)),
          .block = dim3(static_cast<unsigned>(threads)),
          .shared = plan.shared,
          .cluster = static_cast<unsigned>(plan.cluster)},
         kernel, k, plan);
  return true;
}

}  // namespace norma::norm_cuda
