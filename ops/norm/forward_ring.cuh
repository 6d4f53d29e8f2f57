#pragma once

#include <algorithm>

#include "norma/ops/norm/forward_group.cuh"

namespace norma::norm_cuda {

/// How the kernels below run: who holds what.
struct RingRowsPlan {
  RowOrder order;
  int64_t groups = 1, items = 0;
  float share = 1;  ///< 1 / what a mean is divided by
  // Of the ring alone:
  int cluster = 1;  ///< blocks a group
  int stages = 0;
  uint32_t x_bytes = 0, residual_bytes = 0;  ///< of a slice, which is a block's part of a group
  uint32_t stage_bytes = 0;
  uint32_t w_bytes = 0, b_bytes = 0;  ///< of the slices of weights kept in shared memory
};

/// The vectors that a thread holds: of the elements first, first + step, … < end of a group, where
/// its chunk ends.
struct Columns {
  int first, step, end;
};

inline constexpr int kForwardRingWarps = 16;  // at most, of a block
inline constexpr int kRingChunks = 256;       // at most, of a group

/// Who holds a group of these kernels: a warp or part of it, a block, or a block or a cluster that
/// a ring feeds.
enum class RingHolder { warp, block, ring };

/// What the warps of a group tell one another: a pair of sums a chunk, of two meetings in turn.
template <RingHolder kHolder>
struct RingSlots {
  float2 sums[2][kHolder == RingHolder::ring ? kRingChunks : kHeldWarps];
  SharedBarrier met[2];  ///< of a cluster
};

/// kAligned: every vector is whole and on 16 bytes.
/// A group in the registers of its threads, from the load to y, with a chunk a warp. Vectors beyond
/// its end are zeros.
template <class T, bool kGated, bool kAligned, RingHolder kHolder>
struct RingGroup {
  using Acc = float;
  static constexpr int kWidth = kLaneWidth<T>, kVecs = kForwardChunk / (kWarpSize * kWidth);
  static constexpr bool kRing = kHolder == RingHolder::ring;
  static constexpr From kFrom = kRing ? From::anywhere : From::once,
                        kWeightsFrom = kRing ? From::anywhere : From::cached;

  const NormForwardArgs& k;
  const RingRowsPlan& plan;
  RingSlots<kHolder>& slots;
  int lane, chunk;
  Columns columns;
  uint32_t meetings = 0;
  Acc u[kVecs][kWidth];
  Vector<T, kWidth> z[kGated ? kVecs : 1];

  __device__ __forceinline__ int lanes() const {
    return kHolder == RingHolder::warp ? plan.order.lanes : kWarpSize;
  }
  __device__ __forceinline__ int left(int v) const {
    return columns.end - (columns.first + v * columns.step);
  }
  /// Elements of a vector; of an aligned group all or none.
  __device__ __forceinline__ int count(int v) const {
    if constexpr (kAligned) return left(v) > 0 ? kWidth : 0;
    return left(v) >= kWidth ? kWidth : left(v) > 0 ? left(v) : 0;
  }

  // Vectors from this thread's first element on: `mine` is in a tensor or, of a ring, in shared
  // memory.

  template <class E>
  __device__ __forceinline__ void load(const E* mine, Vector<E, kWidth> (&to)[kVecs]) const {
    if constexpr (kAligned) {
#pragma unroll
      for (int v = 0; v < kVecs; ++v)
        to[v] = count(v) > 0 ? load_vector<kFrom, kWidth>(mine + v * columns.step)
                             : Vector<E, kWidth>{};
    } else {
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
        to[v] = {};
        if (v < plan.order.vecs) to[v] = load_part<kWidth>(mine + v * columns.step, count(v));
      }
    }
  }

  /// Writes the vectors of a row one by one.
  template <class E>
  struct Writer {
    const RingGroup& group;
    E* mine;
    bool active;  ///< else for company in the shuffles

    __device__ __forceinline__ void put(int v, const Vector<E, kWidth>& from) {
      const int n = active ? group.count(v) : 0;
      E* p = mine + v * group.columns.step;
      if constexpr (kAligned) {
        if (n > 0) store_vector(p, from);
      } else {
        if (v < group.plan.order.vecs) store_part(p, from, n);
      }
    }
  };

  __device__ __forceinline__ void hold(const Vector<T, kWidth> (&x)[kVecs]) {
#pragma unroll
    for (int v = 0; v < kVecs; ++v) x[v].unpack(u[v]);
  }
  /// x + residual, rounded to what h stores: E.
  template <class E>
  __device__ __forceinline__ void hold_sum(const Vector<T, kWidth> (&x)[kVecs], const E* residual,
                                           E* h, bool active) {
    Vector<E, kWidth> packed[kVecs];
    load(residual, packed);
    Writer<E> writer{*this, h, active};
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      Acc r[kWidth];
      x[v].unpack(u[v]);
      packed[v].unpack(r);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) r[e] = add(u[v][e], r[e]);
      const auto rounded = Vector<E, kWidth>::pack(r);
      rounded.unpack(u[v]);
      writer.put(v, rounded);
    }
  }
  __device__ __forceinline__ void gate(int v, Acc (&values)[kWidth]) const {
    if (v >= plan.order.vecs) return;
    Acc gates[kWidth];
    z[v].unpack(gates);
#pragma unroll
    for (int e = 0; e < kWidth; ++e)
      values[e] = mul(values[e], short_gate_of<sizeof(T) == 2>(k.options, gates[e]).value);
  }

  /// Tells all warps of the group this one's sums, and waits for theirs. Two sets of slots suffice:
  /// who sends those of a meeting has those of the one before, and so all have read the one before
  /// that. In a cluster a barrier counts the bytes that come; one that all blocks arrive at would
  /// wait for their stores to global memory too.
  __device__ __forceinline__ void meet(float2 mine) {
    const uint32_t set = meetings & 1;
    float2* slot = &slots.sums[set][chunk];
    if (!kRing || plan.cluster == 1) {
      if (lane == 0) *slot = mine;
      __syncthreads();
    } else {
      SharedBarrier& met = slots.met[set];
      if (threadIdx.x == 0) met.expect(static_cast<uint32_t>(plan.order.chunks) * sizeof(float2));
      if (lane < plan.cluster && chunk < plan.order.chunks)
        send_counted(slot, mine, &met, static_cast<uint32_t>(lane));
      met.wait(meetings >> 1 & 1);
    }
    ++meetings;
  }
  __device__ __forceinline__ const Acc* told() const {
    return &slots.sums[(meetings - 1) & 1][0].x;
  }
  template <int kSums>
  __device__ __forceinline__ void sum(const LaneSum<Acc> (&mine)[kSums], Acc (&total)[kSums]) {
#pragma unroll
    for (int s = 0; s < kSums; ++s) total[s] = lanes_sum(mine[s].total(), lanes());
    if constexpr (kHolder == RingHolder::warp) return;
    meet(make_float2(total[0], total[kSums - 1]));
#pragma unroll
    for (int s = 0; s < kSums; ++s) total[s] = chunks_sum<2>(told() + s, plan.order.chunks);
  }
  /// The largest |u|, or NaN: their bits are in this order.
  __device__ __forceinline__ Acc largest_element() {
    uint32_t most = 0;
#pragma unroll
    for (int v = 0; v < kVecs; ++v)
#pragma unroll
      for (int e = 0; e < kWidth; ++e) most = max(most, __float_as_uint(fabsf(u[v][e])));
    for (int step = lanes() / 2; step > 0; step /= 2)
      most = max(most, __shfl_xor_sync(0xffffffffu, most, step));
    if constexpr (kHolder != RingHolder::warp) {
      meet(make_float2(__uint_as_float(most), 0));
#pragma unroll 1
      for (int c = 0; c < plan.order.chunks; ++c) most = max(most, __float_as_uint(told()[2 * c]));
    }
    return __uint_as_float(most);
  }

  /// Σ u² or, by two passes over the registers, the mean as a pair and Σ (u − mean)².
  template <class F>
  __device__ __forceinline__ Acc squares(Stats<Acc>& s, Acc terms, const F& at_first_meeting) {
    LaneSum<Acc> first[1], second[2];
    Acc total[1], totals[2];
    if (k.options.kind != NormKind::layer) {
#pragma unroll
      for (int v = 0; v < kVecs; ++v)
#pragma unroll
        for (int e = 0; e < kWidth; ++e) first[0].product(e, u[v][e], u[v][e]);
      sum(first, total);
      at_first_meeting();
      return total[0];
    }
#pragma unroll
    for (int v = 0; v < kVecs; ++v)
#pragma unroll
      for (int e = 0; e < kWidth; ++e) first[0].term(e, u[v][e]);
    sum(first, total);
    at_first_meeting();
    s.mean = mean_of(total[0], terms, plan.share);
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      const int n = count(v);
      const Acc mean = n > 0 ? s.mean : Acc(0);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        Acc c = sub(u[v][e], mean);
        if (!kAligned && e >= n) c = 0;
        second[0].term(e, c);
        second[1].product(e, c, c);
      }
    }
    sum(second, totals);
    s.mean_rest = mean_of(totals[0], terms, plan.share);
    return about_mean(totals[1], s.mean_rest, terms);
  }

  /// Leaves u multiplied by the scale.
  template <class F>
  __device__ __forceinline__ Stats<Acc> statistics(const F& at_first_meeting) {
    const Acc terms =
        k.options.kind == NormKind::l2 ? Acc(1) : static_cast<Acc>(static_cast<int>(plan.order.n));
    const double eps = k.options.eps;
    Stats<Acc> s;
#pragma unroll 1
    for (int pass = 0;; ++pass) {
      const Acc sum_of_squares = squares(s, terms, [&] {
        if (pass == 0) at_first_meeting();
      });
      s.rstd = s.scale == 1 ? rstd_of(sum_of_squares, terms, plan.share, Epsilon<Acc>(eps))
                            : scaled_rstd(sum_of_squares, terms, s.scale, eps);
      // All threads of a block agree; rows of one warp need not, and a scale of 1 changes nothing.
      const bool redo = out_of_range(sum_of_squares, eps);
      if (pass == 1 || !__any_sync(0xffffffffu, redo)) return s;
      const Acc most = largest_element();
      s.scale = redo ? range_scale(most) : Acc(1);
      if (!__any_sync(0xffffffffu, s.scale != 1)) return s;
#pragma unroll
      for (int v = 0; v < kVecs; ++v)
#pragma unroll
        for (int e = 0; e < kWidth; ++e) u[v][e] = mul(u[v][e], s.scale);
    }
  }
  __device__ __forceinline__ void write_stats(const Stats<Acc>& s, int64_t at) const {
    const auto unscaled = [&](Acc v) { return s.scale == 1 ? v : v / s.scale; };
    if (k.mean) k.mean.at<Acc>(at) = unscaled(s.mean);
    if (k.mean_rest) k.mean_rest.at<Acc>(at) = unscaled(s.mean_rest);
    k.rstd.at<Acc>(at) = mul(s.rstd, s.scale);
  }

  /// A vector of weights, in a tensor or, of a ring, maybe in shared memory; `absent` of none.
  template <class W>
  __device__ __forceinline__ Vector<W, kWidth> weight(const W* mine, int v, float absent) const {
    const W* p = mine + v * columns.step;
    if constexpr (kAligned) {
      if (mine && count(v) > 0) return load_vector<kWeightsFrom, kWidth>(p);
    } else if (mine) {
      return count(v) == kWidth && is_aligned<16 / sizeof(W)>(p)
                 ? load_vector<From::cached, kWidth>(p)
                 : load_part<kWidth>(p, count(v));
    }
    return Vector<W, kWidth>::filled(absent);
  }
  /// y from this thread's first element on, and so the weights.
  template <class W>
  __device__ __forceinline__ void write_y(const Stats<Acc>& stats, T* y, const W* w, const W* b,
                                          bool active) const {
    const Normalize<Acc> x_hat(stats);
    const Acc more = w && k.options.zero_centered ? 1 : 0;
    Writer<T> writer{*this, y, active};
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      Acc gain[kWidth], r[kWidth];
      weight(w, v, 1).unpack(gain);
      weight(b, v, 0).unpack(r);
      if (more != 0) {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) gain[e] = add(gain[e], more);
      }
#pragma unroll
      for (int e = 0; e < kWidth; ++e) r[e] = fused(x_hat(u[v][e]), gain[e], r[e]);
      if (kGated && k.options.gate == GateOrder::norm_then_gate) gate(v, r);
      writer.put(v, Vector<T, kWidth>::pack(r));
    }
  }

  // Where this thread's first elements are, in tensors or, of a ring, in shared memory; or null.

  __device__ __forceinline__ void read(const GroupPlace& p, const T* x, const T* from_z,
                                       const void* residual, bool active) {
    Vector<T, kWidth> packed[kVecs];
    load(x, packed);
    if constexpr (kGated)
      if (from_z) load(from_z, z);
    const int64_t at = p.first + columns.first;
    if (!residual)
      hold(packed);
    else if (k.residual.dtype == dtype_of<T>)
      hold_sum(packed, static_cast<const T*>(residual), k.h.row<T>(p.row) + at, active);
    else
      hold_sum(packed, static_cast<const Acc*>(residual), k.h.row<Acc>(p.row) + at, active);
    if (kGated && k.options.gate == GateOrder::gate_then_norm) {
#pragma unroll
      for (int v = 0; v < kVecs; ++v) gate(v, u[v]);
    }
  }
  __device__ __forceinline__ void write(const GroupPlace& p, const Stats<Acc>& stats, const void* w,
                                        const void* b, bool active) const {
    T* y = k.y.row<T>(p.row) + p.first + columns.first;
    if ((k.w ? k.w : k.b).dtype == dtype_of<T>)
      write_y(stats, y, static_cast<const T*>(w), static_cast<const T*>(b), active);
    else
      write_y(stats, y, static_cast<const Acc*>(w), static_cast<const Acc*>(b), active);
  }

  /// The address of element c of what is T or Acc, or null.
  static __device__ __forceinline__ const void* address(const void* data, DType dtype, int64_t c) {
    if (!data) return nullptr;
    return dtype == dtype_of<T> ? static_cast<const void*>(static_cast<const T*>(data) + c)
                                : static_cast<const Acc*>(data) + c;
  }
  __device__ __forceinline__ const void* first_of(const ConstRows& t, const GroupPlace& p) const {
    return address(t.data, t.dtype, p.row * t.row_stride + p.first + columns.first);
  }
  __device__ __forceinline__ const void* first_of(const ConstVec& w, const GroupPlace& p) const {
    return address(w.data, w.dtype, (w.n == plan.order.n ? 0 : p.first) + columns.first);
  }
};

/// Members that have no kernel of their own, up to kHeldWarps chunks, each tensor read once, a
/// group or more a block: a gate beside a residual; and floats off 16 bytes with a gate, one by
/// one, since the four loads of a vector find one another's bytes in the first cache.
///   bytes  rows · D · (x, y and where they are: z, residual, h); w and b come from the caches
///   bound  memory
template <class T, bool kAligned, RingHolder kHolder>
__global__ void __launch_bounds__(kHeldWarps* kWarpSize, sizeof(T) == 2 ? 3 : 2)
    norm_forward_mixed_kernel(const __grid_constant__ NormForwardArgs k,
                              const __grid_constant__ RingRowsPlan plan) {
  using Group = RingGroup<T, true, kAligned, kHolder>;
  constexpr bool kBlock = kHolder == RingHolder::block;
  __shared__ RingSlots<kHolder> slots;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int lanes = kBlock ? kWarpSize : plan.order.lanes, lane_in = lane & (lanes - 1);
  const int size = static_cast<int>(plan.order.n), step = lanes * Group::kWidth;
  int64_t item = blockIdx.x;
  if (!kBlock) item = (item * blockDim.x + threadIdx.x) >> (31 - __clz(lanes));
  const bool active = kBlock || item < plan.items;
  if (!active) item = plan.items - 1;  // for company in the shuffles
  const GroupPlace p(item, plan.groups, size);
  const int chunk = kBlock ? warp : 0, per_chunk = plan.order.vecs * step;
  Group group{
      k,
      plan,
      slots,
      lane,
      chunk,
      {chunk * per_chunk + lane_in * Group::kWidth, step, min(size, (chunk + 1) * per_chunk)}};
  const int64_t at = p.first + group.columns.first;
  group.read(p, k.x.row<T>(p.row) + at, k.z ? k.z.row<T>(p.row) + at : nullptr,
             group.first_of(k.residual, p), active);
  const Stats<float> stats = group.statistics([] {});
  if (active && lane_in == 0 && chunk == 0) group.write_stats(stats, p.stat);
  group.write(p, stats, group.first_of(k.w, p), group.first_of(k.b, p), active);
}

/// Longer groups: blocks live for the whole call, alone or in clusters of two to sixteen that share
/// a group. While they work on one, the bulk copy engine brings their slices of the next ones into
/// a ring of stages in shared memory, so that memory is never idle while warps meet.
template <class T, bool kGated>
__global__ void __launch_bounds__(kForwardRingWarps* kWarpSize, 1)
    norm_forward_ring_kernel(const __grid_constant__ NormForwardArgs k,
                             const __grid_constant__ RingRowsPlan plan) {
#if __CUDA_ARCH__ >= 900
  using Group = RingGroup<T, kGated, true, RingHolder::ring>;
  __shared__ RingSlots<RingHolder::ring> slots;
  __shared__ SharedBarrier full[8];
  extern __shared__ __align__(128) unsigned char memory[];
  unsigned char* stages = memory + plan.w_bytes + plan.b_bytes;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int warps = blockDim.x / kWarpSize, size = static_cast<int>(plan.order.n);
  const int per_chunk = plan.order.vecs * kWarpSize * Group::kWidth;
  const uint32_t rank = plan.cluster > 1 ? cluster_rank() : 0;
  const int chunk = static_cast<int>(rank) * warps + warp;
  const int slice_first = static_cast<int>(rank) * warps * per_chunk;
  const int in_slice = max(0, min(size - slice_first, warps * per_chunk));

  const auto element_of = [](DType t) {
    return static_cast<uint32_t>(t == dtype_of<T> ? sizeof(T) : 4);
  };

  // One thread sends for slices; the barrier of their stage counts the bytes.
  const auto send_for = [&](int64_t item, int stage) {
    if (item >= plan.items) return;
    const GroupPlace p(item, plan.groups, size);
    unsigned char* to = stages + static_cast<uint32_t>(stage) * plan.stage_bytes;
    const auto bytes = [&](const ConstRows& t) {
      return t ? static_cast<uint32_t>(in_slice) * element_of(t.dtype) : 0;
    };
    full[stage].expect(bytes(k.x) + bytes(k.z) + bytes(k.residual));
    const auto copy = [&](const ConstRows& t, uint32_t offset) {
      if (t && in_slice > 0)
        bulk_copy(to + offset,
                  Group::address(t.data, t.dtype, p.row * t.row_stride + p.first + slice_first),
                  bytes(t), full[stage]);
    };
    copy(k.x, 0);
    copy(k.residual, plan.x_bytes);
    copy(k.z, plan.x_bytes + plan.residual_bytes);
  };
  const int64_t first_item = blockIdx.x / plan.cluster, step = gridDim.x / plan.cluster;
  if (threadIdx.x == 0) {
    for (int s = 0; s < plan.stages; ++s) full[s].init(1);
    slots.met[0].init(1), slots.met[1].init(1);
    publish_barriers();
    for (int s = 0; s < plan.stages; ++s) send_for(first_item + s * step, s);
  }
  __syncthreads();
  if (plan.cluster > 1) cluster_sync();  // all blocks have started: their slots can be written

  Group group{k,
              plan,
              slots,
              lane,
              chunk,
              {chunk * per_chunk + lane * Group::kWidth, kWarpSize * Group::kWidth,
               min(size, (chunk + 1) * per_chunk)}};
  const int local = group.columns.first - slice_first;
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
  if (plan.w_bytes > 0) keep(k.w, memory);
  if (plan.b_bytes > 0) keep(k.b, memory + plan.w_bytes);

  int stage = 0;
  uint32_t phase = 0;
#pragma unroll 1
  for (int64_t item = first_item; item < plan.items; item += step) {
    const GroupPlace p(item, plan.groups, size);
    const unsigned char* x = stages + static_cast<uint32_t>(stage) * plan.stage_bytes;
    const unsigned char *residual = x + plan.x_bytes, *z = residual + plan.residual_bytes;
    const auto here = [&](const unsigned char* data, DType dtype) {
      return Group::address(data, dtype, local);
    };
    const auto weight = [&](const ConstVec& t, uint32_t kept, const unsigned char* data) {
      return kept > 0 ? here(data, t.dtype) : group.first_of(t, p);
    };
    full[stage].wait(phase);
    group.read(p, reinterpret_cast<const T*>(x) + local,
               k.z ? reinterpret_cast<const T*>(z) + local : nullptr,
               k.residual ? here(residual, k.residual.dtype) : nullptr, true);
    // When the warps have met, they have all read their stage.
    const Stats<float> stats = group.statistics([&] {
      if (threadIdx.x == 0) send_for(item + plan.stages * step, stage);
    });
    if (threadIdx.x == 0 && rank == 0) group.write_stats(stats, p.stat);
    group.write(p, stats, weight(k.w, plan.w_bytes, memory),
                weight(k.b, plan.b_bytes, memory + plan.w_bytes), true);
    if (++stage == plan.stages) stage = 0, phase ^= 1;
  }
#endif
}

/// A ring for the groups of k, if one fits: the smallest cluster that leaves room for two stages
/// and, where all groups share them, for the weights.
template <class T>
bool plan_ring(const Cuda& on, const NormForwardArgs& k, RingRowsPlan& plan, int* warps,
               size_t* shared) {
  if (detail::properties(on.device).major < 9) return false;
  constexpr size_t kMemory = 220 << 10;
  const auto bytes = [](const auto& t) { return t ? size_of(t.dtype) : 0; };
  const int64_t element = size_of(k.x.dtype) + bytes(k.z) + bytes(k.residual);
  const bool shares = plan.groups == 1 || (k.w ? k.w : k.b).n == plan.order.n;
  for (const bool keeps : {true, false})
    for (plan.cluster = 1; plan.cluster <= 16; plan.cluster *= 2) {
      *warps = ceil_div(plan.order.chunks, plan.cluster);
      if (*warps > kForwardRingWarps || (keeps && !shares)) continue;
      const int64_t slice = int64_t{*warps} * plan.order.vecs * kWarpSize * kLaneWidth<T>;
      plan.stage_bytes = static_cast<uint32_t>(slice * element);
      plan.x_bytes = static_cast<uint32_t>(slice * size_of(k.x.dtype));
      plan.residual_bytes = static_cast<uint32_t>(slice * bytes(k.residual));
      plan.w_bytes = static_cast<uint32_t>(keeps ? slice * bytes(k.w) : 0);
      plan.b_bytes = static_cast<uint32_t>(keeps ? slice * bytes(k.b) : 0);
      const size_t kept = plan.w_bytes + plan.b_bytes;
      if (kept + 2 * plan.stage_bytes > kMemory) continue;
      plan.stages = static_cast<int>(std::min<size_t>(8, (kMemory - kept) / plan.stage_bytes));
      *shared = kept + static_cast<size_t>(plan.stages) * plan.stage_bytes;
      return true;
    }
  return false;
}

template <class T>
RingRowsPlan ring_rows_plan(const NormForwardArgs& k) {
  const int64_t size = k.options.group == 0 ? k.x.cols : k.options.group;
  RingRowsPlan plan{.order = forward_order(size, kLaneWidth<T>), .groups = k.x.cols / size};
  plan.items = k.x.rows * plan.groups;
  plan.share = 1 / (k.options.kind == NormKind::l2 ? 1.0f : static_cast<float>(size));
  return plan;
}

/// Runs it, or says that the sizes do not fit.
template <class T, bool kAligned>
bool forward_mixed(const Cuda& on, const NormForwardArgs& k) {
  const RingRowsPlan plan = ring_rows_plan<T>(k);
  const auto go = [&]<RingHolder kHolder>(int warps, int groups) {
    launch(on,
           {.grid = grid_for(plan.items, groups),
            .block = dim3(static_cast<unsigned>(warps * kWarpSize))},
           norm_forward_mixed_kernel<T, kAligned, kHolder>, k, plan);
    return true;
  };
  if (plan.order.chunks == 1)
    return go.template operator()<RingHolder::warp>(4, 4 * kWarpSize / plan.order.lanes);
  return plan.order.chunks <= kHeldWarps &&
         go.template operator()<RingHolder::block>(plan.order.chunks, 1);
}

/// Runs it, or says that the sizes do not fit.
template <class T>
bool forward_ring(const Cuda& on, const NormForwardArgs& k) {
  RingRowsPlan plan = ring_rows_plan<T>(k);
  int warps = 0;
  size_t shared = 0;
  if (k.x.rows == 0 || !plan_ring<T>(on, k, plan, &warps, &shared)) return false;
  const auto kernel = k.z ? norm_forward_ring_kernel<T, true> : norm_forward_ring_kernel<T, false>;
  const int64_t clusters =
      std::min<int64_t>(plan.items, resident_clusters(on, reinterpret_cast<const void*>(kernel),
                                                      warps * kWarpSize, shared, plan.cluster));
  if (clusters < 1) return false;
  launch(on,
         {.grid = dim3(static_cast<unsigned>(clusters * plan.cluster)),
          .block = dim3(static_cast<unsigned>(warps * kWarpSize)),
          .shared = shared,
          .cluster = static_cast<unsigned>(plan.cluster)},
         kernel, k, plan);
  return true;
}

}  // namespace norma::norm_cuda
