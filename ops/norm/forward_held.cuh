#pragma once

#include <algorithm>

#include "norma/ops/norm/forward_any.cuh"

namespace norma::norm_cuda {

/// Who holds what in the kernels of forward.
struct HeldPlan {
  RowOrder order;
  int64_t groups = 1, items = 0;
  float share = 1, chunk_share = 1;  ///< 1 / elements of a group, of a whole chunk
  bool aligned = false;              ///< every vector is whole and on 16 bytes
};

/// The vectors that a thread holds: of the elements first, first + step, … < end of a group, where
/// its chunk ends.
struct Columns {
  int first, step, end;
  float share;  ///< 1 / elements of the chunk
};

/// Who holds a group: a warp or part of it, a block, or a block or a cluster that a ring feeds.
enum class Holder { warp, block, ring };

/// A chunk of a group in the registers of a warp, from the load to y; short groups share a warp.
/// Vectors beyond its end are zeros.
template <class T, bool kGated, bool kAligned, Holder kHolder>
struct HeldGroup {
  using Acc = float;
  static constexpr int kWidth = kLaneWidth<T>, kVecs = kForwardVecs;
  static constexpr bool kRing = kHolder == Holder::ring;

  const NormForwardArgs& k;
  const HeldPlan& plan;
  int lane;
  Columns columns;
  Acc u[kVecs][kWidth];
  Vector<T, kWidth> z[kGated ? kVecs : 1];

  static __device__ __forceinline__ Columns columns_of(const HeldPlan& plan, int chunk,
                                                       int lane_in) {
    const int lanes = kHolder == Holder::warp ? plan.order.lanes : kWarpSize;
    const int step = lanes * kWidth, per_chunk = plan.order.vecs * step;
    const int size = static_cast<int>(plan.order.n), left = size - chunk * per_chunk;
    return {chunk * per_chunk + lane_in * kWidth, step, min(size, (chunk + 1) * per_chunk),
            left >= per_chunk || kHolder == Holder::warp ? plan.chunk_share
                                                         : 1 / static_cast<float>(max(left, 1))};
  }
  __device__ __forceinline__ int lanes() const {
    return kHolder == Holder::warp ? plan.order.lanes : kWarpSize;
  }
  __device__ __forceinline__ int left(int v) const {
    return columns.end - (columns.first + v * columns.step);
  }
  /// Elements of a vector; of an aligned group all or none.
  __device__ __forceinline__ int count(int v) const {
    if constexpr (kAligned) return left(v) > 0 ? kWidth : 0;
    return left(v) >= kWidth ? kWidth : left(v) > 0 ? left(v) : 0;
  }

  /// Whether any lane has a vector v; a branch equal for all.
  __device__ __forceinline__ bool any_has(int v) const { return v < 2 || v < plan.order.vecs; }

  // Vectors from this thread's first element on: `mine` is in a tensor or, of a ring, in shared
  // memory.

  template <class E>
  __device__ __forceinline__ void load(const E* mine, Vector<E, kWidth> (&to)[kVecs]) const {
    if constexpr (kAligned) {
#pragma unroll
      for (int v = 0; v < kVecs; ++v)
        to[v] = count(v) > 0               ? load_vector < kRing ? From::anywhere : From::once,
        kWidth > (mine + v * columns.step) : Vector<E, kWidth>{};
    } else if constexpr (sizeof(E) == 4) {
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
        to[v] = {};
        if (v < plan.order.vecs) to[v] = load_part<kWidth>(mine + v * columns.step, count(v));
      }
    } else {
      load_skewed(mine, to);
    }
  }
  /// Half types off 16 bytes: from the two vectors on 16 bytes that hold theirs, if they lie in the
  /// row.
  template <class E>
  __device__ __forceinline__ void load_skewed(const E* mine, Vector<E, kWidth> (&to)[kVecs]) const {
    const E *begin = mine - columns.first, *end = begin + plan.order.n;
    const uint32_t skew = reinterpret_cast<uintptr_t>(mine) % 16;
    const auto low = [&](int v) { return mine + v * columns.step - skew / sizeof(E); };
    const auto inside = [&](int v) {
      return count(v) == kWidth && low(v) >= begin && low(v) + 2 * kWidth <= end;
    };
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      Vector<E, 2 * kWidth> both{};
      if (inside(v)) both = load_vector<From::cached, 2 * kWidth>(low(v));
      take_16_bytes(both.words, skew, to[v].words);
    }
#pragma unroll
    for (int v = 0; v < kVecs; ++v)
      if (!inside(v) && count(v) > 0) to[v] = load_part<kWidth>(mine + v * columns.step, count(v));
  }

  /// Writes the vectors of a row one by one.
  template <class E>
  struct Writer {
    const HeldGroup& group;
    E* mine;
    bool active;  ///< else for company in the shuffles
    Vector<E, kWidth> last{};

    __device__ __forceinline__ void put(int v, const Vector<E, kWidth>& from) {
      const int n = active ? group.count(v) : 0;
      E* p = mine + v * group.columns.step;
      if constexpr (kAligned) {
        if (n > 0) store_vector(p, from);
      } else {
        if (v >= group.plan.order.vecs) return;
        if constexpr (sizeof(E) == 4)
          store_part(p, from, n);
        else
          put_skewed(p, v, n, from);
      }
    }
    /// Half types off 16 bytes: the 16 bytes that begin in the vector before this one, which the
    /// lane before or, on its last vector, the last lane has; what none has whole one by one.
    __device__ __forceinline__ void put_skewed(E* p, int v, int n, const Vector<E, kWidth>& from) {
      const int lanes = group.lanes(), lane_in = group.lane & (lanes - 1);
      const int before = (group.lane & ~(lanes - 1)) | ((lane_in - 1) & (lanes - 1));
      const uint32_t skew = reinterpret_cast<uintptr_t>(p) % 16;
      uint32_t both[8], whole[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t mine_or_last = lane_in == lanes - 1 ? last.words[i] : from.words[i];
        both[i] = __shfl_sync(0xffffffffu, mine_or_last, before);
        both[4 + i] = from.words[i];
      }
      last = from;
      if (skew == 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i) both[i] = from.words[i];
      }
      take_16_bytes(both, (16 - skew) % 16, whole);
      const int skew_elements = static_cast<int>(skew / sizeof(E)), head = kWidth - skew_elements;
      const bool has_head = n == kWidth && (lane_in > 0 || v > 0);
      const bool next_has_tail = n > 0 && group.left(v) >= 2 * kWidth &&
                                 !(lane_in == lanes - 1 && v == group.plan.order.vecs - 1);
      if (has_head)
        *reinterpret_cast<uint4*>(p - skew_elements) =
            make_uint4(whole[0], whole[1], whole[2], whole[3]);
      if (n == 0 || (has_head && (next_has_tail || skew == 0))) return;
#pragma unroll
      for (int e = 0; e < kWidth; ++e)
        if (e < n && !(e < head ? has_head : next_has_tail))
          p[e].bits = static_cast<uint16_t>(e % 2 ? from.words[e / 2] >> 16 : from.words[e / 2]);
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
    if (!any_has(v)) return;
    Acc gates[kWidth];
    z[v].unpack(gates);
#pragma unroll
    for (int e = 0; e < kWidth; ++e)
      values[e] = mul(values[e], short_gate_of(k.options, gates[e]).value);
  }

  __device__ __forceinline__ ChunkSums<Acc> sums() const {
    LaneSum<Acc> squares, sum, rest;
    if (k.options.kind != NormKind::layer) {
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
        if (!any_has(v)) break;
#pragma unroll
        for (int e = 0; e < kWidth; ++e) squares.product(e, u[v][e], u[v][e]);
      }
      return {0, 0, lanes_sum(squares.total(), lanes())};
    }
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      if (!any_has(v)) break;
#pragma unroll
      for (int e = 0; e < kWidth; ++e) sum.term(e, u[v][e]);
    }
    const Acc mean = mul(lanes_sum(sum.total(), lanes()), columns.share);
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      if (!any_has(v)) break;
      const int n = count(v);
      const Acc from_all = n > 0 ? mean : Acc(0);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        Acc c = sub(u[v][e], from_all);
        if (!kAligned && e >= n) c = 0;
        rest.term(e, c);
        squares.product(e, c, c);
      }
    }
    return {mean, lanes_sum(rest.total(), lanes()), lanes_sum(squares.total(), lanes())};
  }
  /// The largest |u|, or NaN: their bits are in this order.
  __device__ __forceinline__ uint32_t largest_bits() const {
    uint32_t most = 0;
#pragma unroll
    for (int v = 0; v < kVecs; ++v)
#pragma unroll
      for (int e = 0; e < kWidth; ++e) most = max(most, __float_as_uint(fabsf(u[v][e])));
    for (int step = lanes() / 2; step > 0; step /= 2)
      most = max(most, __shfl_xor_sync(0xffffffffu, most, step));
    return most;
  }

  /// From the sums of all chunks: sums_of(c). largest(bits) is that of all warps, tell_again(sums)
  /// gives the sums of all chunks anew. Leaves u multiplied by the scale.
  template <class Sums, class LargestOf, class Again>
  __device__ __forceinline__ Stats<Acc> statistics(const Sums& sums_of, const LargestOf& largest,
                                                   const Again& tell_again) {
    const bool centred = k.options.kind == NormKind::layer;
    const Acc terms = k.options.kind == NormKind::l2 ? Acc(1) : static_cast<Acc>(plan.order.n);
    const double eps = k.options.eps;
    Moments<Acc> m = moments_of<kWidth>(plan.order, centred, plan.share, sums_of);
    const Stats<Acc> s{m.mean, m.mean_rest, rstd_of(m.squares, terms, eps), 1};
    // All threads of a block agree; rows of one warp need not, and a scale of 1 changes nothing.
    const bool redo = out_of_range(m.squares, eps);
    if (!__any_sync(0xffffffffu, redo)) return s;
    const Acc most = __uint_as_float(largest(largest_bits()));
    const Acc scale = redo ? range_scale(most) : Acc(1);
    if (!__any_sync(0xffffffffu, scale != 1)) return s;
#pragma unroll
    for (int v = 0; v < kVecs; ++v)
#pragma unroll
      for (int e = 0; e < kWidth; ++e) u[v][e] = mul(u[v][e], scale);
    m = moments_of<kWidth>(plan.order, centred, plan.share, tell_again(sums()));
    if (scale == 1) return s;
    return {m.mean, m.mean_rest, scaled_rstd(m.squares, terms, scale, eps), scale};
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
      if (mine && count(v) > 0)
        return load_vector < kRing ? From::anywhere : From::cached, kWidth > (p);
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
      if (!any_has(v)) break;
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

/// Warps of a block at most, and blocks of a multiprocessor: as many as leave the registers.
template <class T, Holder kHolder>
inline constexpr int kHeldWarps = kHolder == Holder::warp ? 4
                                  : sizeof(T) == 2        ? 8
                                                          : 16;
template <class T, Holder kHolder>
inline constexpr int kHeldBlocks = kHolder == Holder::warp ? (sizeof(T) == 2 ? 5 : 6)
                                   : sizeof(T) == 2        ? 3
                                                           : 2;

/// The plain members up to kHeldWarps chunks, each tensor read once, a group or more a block.
///   bytes  rows · D · (x, y and where they are: z, residual, h); w and b come from the caches
///   bound  memory
template <class T, bool kGated, bool kAligned, Holder kHolder>
__global__ void __launch_bounds__(kHeldWarps<T, kHolder>* kWarpSize, kHeldBlocks<T, kHolder>)
    norm_forward_held_kernel(const __grid_constant__ NormForwardArgs k,
                             const __grid_constant__ HeldPlan plan) {
  using Group = HeldGroup<T, kGated, kAligned, kHolder>;
  constexpr bool kBlock = kHolder == Holder::block;
  __shared__ ChunkSums<float> told[2][kHeldWarps<T, kHolder>];
  __shared__ uint32_t largest[kHeldWarps<T, kHolder>];
  const int lane = threadIdx.x % kWarpSize, chunk = kBlock ? threadIdx.x / kWarpSize : 0;
  const int lanes = kBlock ? kWarpSize : plan.order.lanes, lane_in = lane & (lanes - 1);
  int64_t item = blockIdx.x;
  if (!kBlock) item = (item * blockDim.x + threadIdx.x) >> (31 - __clz(lanes));
  const bool active = kBlock || item < plan.items;
  if (!active) item = plan.items - 1;  // for company in the shuffles
  const GroupPlace p(item, plan.groups, plan.order.n);
  Group group{k, plan, lane, Group::columns_of(plan, chunk, lane_in)};
  const int64_t at = p.first + group.columns.first;
  group.read(p, k.x.row<T>(p.row) + at, k.z ? k.z.row<T>(p.row) + at : nullptr,
             group.first_of(k.residual, p), active);
  const auto tell = [&](ChunkSums<float>* all, const ChunkSums<float>& mine) {
    if constexpr (kBlock) {
      if (lane == 0) all[chunk] = mine;
      __syncthreads();
      return [all](int c) { return all[c]; };
    } else {
      return [mine](int) { return mine; };
    }
  };
  const Stats<float> stats = group.statistics(
      tell(told[0], group.sums()),
      [&](uint32_t bits) {
        if constexpr (kBlock) {
          if (lane == 0) largest[chunk] = bits;
          __syncthreads();
          for (int c = 0; c < plan.order.chunks; ++c) bits = max(bits, largest[c]);
        }
        return bits;
      },
      [&](const ChunkSums<float>& mine) { return tell(told[1], mine); });
  if (active && lane_in == 0 && chunk == 0) group.write_stats(stats, p.stat);
  group.write(p, stats, group.first_of(k.w, p), group.first_of(k.b, p), active);
}

/// Whether the members of forward_held cover k.
template <class T>
bool can_hold(const NormForwardArgs& k) {
  const NormOptions& o = k.options;
  const auto weight = [](const ConstVec& w) {
    return !w || w.dtype == dtype_of<T> || w.dtype == DType::float32;
  };
  return o.activation != GateActivation::gelu && o.casting == Casting::wide &&
         o.variance == Variance::two_pass && o.dropout == 0 && !k.row_scale && !k.w2 && !k.x_hat &&
         !k.y2 && bool(k.h) == bool(k.residual) && (!k.h || k.h.dtype == k.residual.dtype) &&
         k.y.dtype == dtype_of<T> && weight(k.w) && weight(k.b) &&
         (!k.w || !k.b || k.w.dtype == k.b.dtype);
}

template <class T>
HeldPlan plan_held(const NormForwardArgs& k) {
  const int64_t size = k.options.group == 0 ? k.x.cols : k.options.group;
  HeldPlan plan{.order = forward_order(size, kLaneWidth<T>), .groups = k.x.cols / size};
  plan.items = k.x.rows * plan.groups;
  const int64_t per_chunk = int64_t{plan.order.vecs} * plan.order.lanes * kLaneWidth<T>;
  plan.share = 1 / static_cast<float>(size);
  plan.chunk_share = 1 / static_cast<float>(std::min(size, per_chunk));
  const auto even = [&](const auto& t) { return is_even<T>(t, size); };
  plan.aligned = even(k.x) && even(k.z) && even(k.residual) && even(k.h) && even(k.y) &&
                 on_16_bytes(k.w) && on_16_bytes(k.b);
  return plan;
}

template <class T>
void forward_held(const Cuda& on, const NormForwardArgs& k, const HeldPlan& plan) {
  const auto go = [&]<Holder kHolder>(int warps, int groups) {
    launch(on,
           {.grid = grid_for(plan.items, groups),
            .block = dim3(static_cast<unsigned>(warps * kWarpSize))},
           !plan.aligned ? norm_forward_held_kernel<T, true, false, kHolder>
           : k.z         ? norm_forward_held_kernel<T, true, true, kHolder>
                         : norm_forward_held_kernel<T, false, true, kHolder>,
           k, plan);
  };
  if (plan.order.chunks > 1)
    go.template operator()<Holder::block>(plan.order.chunks, 1);
  else
    go.template operator()<Holder::warp>(4, 4 * kWarpSize / plan.order.lanes);
}

}  // namespace norma::norm_cuda
