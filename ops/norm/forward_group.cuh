#pragma once

#include "norma/ops/norm/cluster.cuh"
#include "norma/ops/norm/kernels.h"
#include "norma/ops/norm/plain.cuh"

namespace norma::norm_cuda {

/// What a fast forward reads beside x.
enum class Beside { nothing, gate_last, gate_first, residual, wide_residual };
/// Who holds a group: a warp or part of it, a block, or a cluster of blocks.
enum class Holder { warp, block, cluster };

inline constexpr int kHeldWarps = 8;  // at most, of a block

/// Groups that are read, or written.
struct ForwardRows {
  unsigned char* data = nullptr;
  int64_t row_bytes = 0;  ///< from one row to the next
  int group_bytes = 0;
  int element = 0;    ///< bytes
  bool dense = true;  ///< groups lie one after another
  int64_t bytes = 0;  ///< of all
  uint32_t at = 0;    ///< of norm_forward_skewed_kernel: in shared memory

  /// The byte at which a group begins.
  __device__ __forceinline__ unsigned char* group(int item, int groups) const {
    if (dense) return data + int64_t{item} * group_bytes;
    const int row = item / groups;
    return data + row * row_bytes + int64_t{item - row * groups} * group_bytes;
  }
};

/// How the fast forwards run.
struct ForwardPlan {
  RowOrder order;
  int size = 0, items = 0, groups = 1;  ///< items: groups of all rows
  float share = 1;                      ///< 1 / what a mean is divided by
  float terms = 1;                      ///< what that is
  Epsilon<float> eps;                   ///< inside the root
  float beta = 1;                       ///< of the gate
  bool tiny_eps = false;                ///< so that a vanishing sum of squares counts
  bool narrow_weights = true;           ///< T, else float
  bool own_weights = false;             ///< each group of a row has its own
  int cluster = 1, ranks = 1;           ///< blocks a group, and of those, with a chunk
  int warps = 1;                        ///< of a block
  ForwardRows in[3];                    ///< x, the residual, z
  ForwardRows y, h;
  // Of norm_forward_skewed_kernel alone:
  int at_once = 1;           ///< groups of a warp
  uint32_t stage_bytes = 0;  ///< a warp's shared memory
};

/// A group in the registers of its threads, a chunk a warp, from the load to y. Vectors beyond its
/// end are zeros.
template <class T, bool kCentred, Beside kBeside, bool kTogether>
struct ForwardGroup {
  using Acc = float;
  static constexpr bool kWide = kBeside == Beside::wide_residual;
  static constexpr bool kResidual = kWide || kBeside == Beside::residual;
  static constexpr bool kGateLast = kBeside == Beside::gate_last;
  static constexpr bool kGateFirst = kBeside == Beside::gate_first;
  using H = std::conditional_t<kWide, float, T>;
  static constexpr int kWidth = kLaneWidth<T>, kVecs = kForwardChunk / (kWarpSize * kWidth);

  const NormForwardArgs& k;
  const ForwardPlan& plan;
  const int lane = threadIdx.x % kWarpSize;
  const int lanes, lane_in;  // of those that share a group: how many, which
  const int chunk;
  int column, mine;  // of this lane's first vector, and its vectors
  Acc u[kVecs][kWidth];
  Vector<T, kWidth> z[kGateLast ? kVecs : 1];

  __device__ __forceinline__ ForwardGroup(const NormForwardArgs& args, const ForwardPlan& p,
                                          int which)
      : k(args),
        plan(p),
        lanes(kTogether ? kWarpSize : p.order.lanes),
        lane_in(lane & (lanes - 1)),
        chunk(which) {
    const int per_chunk = plan.order.vecs * lanes * kWidth;
    column = chunk * per_chunk + lane_in * kWidth;
    const int left = min(plan.size, (chunk + 1) * per_chunk) - column + lanes * kWidth - 1;
    mine = left <= 0 ? 0 : kTogether ? left / (kWarpSize * kWidth) : left >> shift();
  }
  /// Of lanes · kWidth.
  __device__ __forceinline__ int shift() const { return 31 - __clz(lanes * kWidth); }
  __device__ __forceinline__ int of(int v) const { return v * lanes * kWidth; }

  /// u, from x and what is beside it, of which each vector is at load(tensor's element, v). h:
  /// where x + residual is put, by put(h, v, vector).
  template <class Load, class Put>
  __device__ __forceinline__ void take(int has, const Load& load, const Put& put) {
    Vector<T, kWidth> packed[kVecs], other[kGateFirst ? kVecs : 1];
    Vector<H, kWidth> residual[kResidual ? kVecs : 1];
#pragma unroll
    for (int v = 0; v < kVecs; ++v)
      packed[v] = v < has ? load.template operator()<T>(0, v) : Vector<T, kWidth>{};
    const auto load_gates = [&](Vector<T, kWidth>(&to)[kVecs]) {
#pragma unroll
      for (int v = 0; v < kVecs; ++v)
        to[v] = v < has ? load.template operator()<T>(2, v) : Vector<T, kWidth>{};
    };
    if constexpr (kGateLast) load_gates(z);
    if constexpr (kGateFirst) load_gates(other);
    if constexpr (kResidual) {
#pragma unroll
      for (int v = 0; v < kVecs; ++v)
        residual[v] = v < has ? load.template operator()<H>(1, v) : Vector<H, kWidth>{};
    }
#pragma unroll
    for (int v = 0; v < kVecs; ++v) packed[v].unpack(u[v]);
    if constexpr (kGateFirst) {
#pragma unroll
      for (int v = 0; v < kVecs; ++v)
        if (v < plan.order.vecs) gate(other[v], u[v]);
    }
    if constexpr (kResidual) {
      __syncwarp();  // all have read what neighbours may write
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
        Acc r[kWidth];
        residual[v].unpack(r);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) r[e] = add(u[v][e], r[e]);
        const auto rounded = Vector<H, kWidth>::pack(r);
        rounded.unpack(u[v]);
        if (v < has) put(v, rounded);
      }
    }
  }

  __device__ __forceinline__ void gate(const Vector<T, kWidth>& by, Acc (&values)[kWidth]) const {
    constexpr bool kShort = sizeof(T) == 2;
    Acc g[kWidth];
    by.unpack(g);
    const GateActivation activation = k.options.activation;
    if (activation == GateActivation::identity) {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) values[e] = mul(values[e], g[e]);
    } else if (activation == GateActivation::sigmoid) {
#pragma unroll
      for (int e = 0; e < kWidth; ++e)
        values[e] = mul(values[e], kShort ? short_sigmoid(g[e]) : sigmoid(g[e]));
    } else {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        const Acc v = mul(plan.beta, g[e]);
        values[e] = mul(values[e], mul(g[e], kShort ? short_sigmoid(v) : sigmoid(v)));
      }
    }
  }

  // Sums over the group: meet(float2) tells all its warps this one's and returns those of all
  // chunks. Where groups end within vectors, ends(value) sets what lies beyond.

  template <int kSums, class Meet>
  __device__ __forceinline__ void sum(const LaneSum<Acc> (&part)[kSums], Acc (&total)[kSums],
                                      Meet& meet) {
#pragma unroll
    for (int s = 0; s < kSums; ++s) total[s] = lanes_sum(part[s].total(), lanes);
    if constexpr (!kTogether) return;
    const float2* told = meet(make_float2(total[0], total[kSums - 1]));
    // As chunks_sum has them.
    float2 all{0, 0};
    if (lane < plan.order.chunks) all = told[lane];
#pragma unroll 1
    for (int c = lane + kWarpSize; c < plan.order.chunks; c += kWarpSize)
      all.x = add(all.x, told[c].x), all.y = add(all.y, told[c].y);
    total[0] = lanes_sum(all.x, kWarpSize);
    if constexpr (kSums > 1) total[1] = lanes_sum(all.y, kWarpSize);
  }
  /// The largest |u|, or NaN: their bits are in this order.
  template <class Meet>
  __device__ __forceinline__ Acc largest_element(Meet& meet) {
    uint32_t most = 0;
#pragma unroll
    for (int v = 0; v < kVecs; ++v)
#pragma unroll
      for (int e = 0; e < kWidth; ++e) most = max(most, __float_as_uint(fabsf(u[v][e])));
    for (int step = lanes / 2; step > 0; step /= 2)
      most = max(most, __shfl_xor_sync(0xffffffffu, most, step));
    if constexpr (kTogether) {
      const float2* told = meet(make_float2(__uint_as_float(most), 0));
#pragma unroll 1
      for (int c = 0; c < plan.order.chunks; ++c) most = max(most, __float_as_uint(told[c].x));
    }
    return __uint_as_float(most);
  }
  /// Σ u² or, by two passes over the registers, the mean as a pair and Σ (u − mean)².
  template <class Meet, class Ends>
  __device__ __forceinline__ Acc squares(Stats<Acc>& s, int has, Meet& meet, const Ends& ends) {
    if constexpr (!kCentred) {
      LaneSum<Acc> part[1];
      Acc total[1];
#pragma unroll
      for (int v = 0; v < kVecs; ++v)
#pragma unroll
        for (int e = 0; e < kWidth; ++e) part[0].product(e, u[v][e], u[v][e]);
      sum(part, total, meet);
      return total[0];
    } else {
      LaneSum<Acc> first[1], second[2];
      Acc total[1], totals[2];
      ends(Acc(0));
#pragma unroll
      for (int v = 0; v < kVecs; ++v)
#pragma unroll
        for (int e = 0; e < kWidth; ++e) first[0].term(e, u[v][e]);
      sum(first, total, meet);
      s.mean = mean_of(total[0], plan.terms, plan.share);
      ends(s.mean);
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
        const Acc mean = v < has ? s.mean : Acc(0);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) {
          const Acc c = sub(u[v][e], mean);
          second[0].term(e, c);
          second[1].product(e, c, c);
        }
      }
      sum(second, totals, meet);
      s.mean_rest = mean_of(totals[0], plan.terms, plan.share);
      return about_mean(totals[1], s.mean_rest, plan.terms);
    }
  }
  /// Leaves u multiplied by the scale.
  template <class Meet, class Ends>
  __device__ __forceinline__ Stats<Acc> statistics(int has, Meet& meet, const Ends& ends) {
    Stats<Acc> s;
#pragma unroll 1
    for (int pass = 0;; ++pass) {
      const Acc sum_of_squares = squares(s, has, meet, ends);
      s.rstd = s.scale == 1 ? rstd_of(sum_of_squares, plan.terms, plan.share, plan.eps)
                            : scaled_rstd(sum_of_squares, plan.terms, s.scale, k.options.eps);
      // All warps of a group agree; groups of one warp need not, and a scale of 1 changes nothing.
      const bool redo =
          !(sum_of_squares <= largest<Acc>()) || (plan.tiny_eps && sum_of_squares < Acc(1e-30f));
      if (pass == 1 || !__any_sync(0xffffffffu, redo)) return s;
      ends(Acc(0));
      const Acc most = largest_element(meet);
      s.scale = redo ? range_scale(most) : Acc(1);
      if (!__any_sync(0xffffffffu, s.scale != 1)) return s;
#pragma unroll
      for (int v = 0; v < kVecs; ++v)
#pragma unroll
        for (int e = 0; e < kWidth; ++e) u[v][e] = mul(u[v][e], s.scale);
    }
  }
  __device__ __forceinline__ void write_stats(const Stats<Acc>& s, int item) const {
    const auto unscaled = [&](Acc v) { return s.scale == 1 ? v : v / s.scale; };
    if (kCentred && k.mean) k.mean.at<Acc>(item) = unscaled(s.mean);
    if (kCentred && k.mean_rest) k.mean_rest.at<Acc>(item) = unscaled(s.mean_rest);
    k.rstd.at<Acc>(item) = mul(s.rstd, s.scale);
  }

  /// y, by put(v, vector). weight(w, v) and weight(b, v) are vectors of the weights; whether there
  /// is one is has_w and has_b.
  template <class W, class Weight, class Put>
  __device__ __forceinline__ void write(const Stats<Acc>& stats, int has, bool has_w, bool has_b,
                                        const Weight& weight, const Put& put) const {
    const Normalize<Acc> x_hat(stats);
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      Acc gain[kWidth], r[kWidth];
      auto w = Vector<W, kWidth>::filled(1), b = Vector<W, kWidth>::filled(0);
      if (has_w && v < has) w = weight.template operator()<W>(0, v);
      if (has_b && v < has) b = weight.template operator()<W>(1, v);
      w.unpack(gain), b.unpack(r);
      if (k.options.zero_centered && has_w) {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) gain[e] = add(gain[e], Acc(1));
      }
#pragma unroll
      for (int e = 0; e < kWidth; ++e)
        r[e] = fused(kCentred ? x_hat(u[v][e]) : mul(u[v][e], stats.rstd), gain[e], r[e]);
      if (kGateLast && v < plan.order.vecs) gate(z[kGateLast ? v : 0], r);
      if (v < has) put(v, Vector<T, kWidth>::pack(r));
    }
  }
};

/// What all fast forwards know of k.
template <class T>
ForwardPlan forward_plan(const NormForwardArgs& k, const RowOrder& order) {
  ForwardPlan plan{.order = order};
  plan.size = static_cast<int>(order.n);
  plan.groups = static_cast<int>(k.x.cols / order.n);
  plan.items = static_cast<int>(k.x.rows) * plan.groups;
  plan.terms = k.options.kind == NormKind::l2 ? 1.0f : static_cast<float>(order.n);
  plan.share = 1 / plan.terms;
  plan.eps = Epsilon<float>(k.options.eps);
  plan.tiny_eps = k.options.eps < 1e-20;
  if (k.options.activation == GateActivation::swish) plan.beta = static_cast<float>(k.options.beta);
  const auto rows_of = [&](const auto& t) {
    ForwardRows r;
    r.data = static_cast<unsigned char*>(const_cast<void*>(static_cast<const void*>(t.data)));
    r.element = t ? static_cast<int>(size_of(t.dtype)) : 0;
    r.row_bytes = t.row_stride * r.element;
    r.group_bytes = plan.size * r.element;
    r.dense = !t || t.rows <= 1 || t.row_stride == t.cols;
    r.bytes = t ? (t.rows - 1) * r.row_bytes + t.cols * r.element : 0;
    return r;
  };
  plan.in[0] = rows_of(k.x), plan.in[1] = rows_of(k.residual), plan.in[2] = rows_of(k.z);
  plan.y = rows_of(k.y), plan.h = rows_of(k.h);
  const ConstVec& weights = k.w ? k.w : k.b;
  plan.narrow_weights = !weights || weights.dtype == dtype_of<T>;
  plan.own_weights = weights && plan.groups > 1 && weights.n != order.n;
  return plan;
}

/// Whether the fast members cover k.
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

/// Whether every vector of every tensor is whole and on 16 bytes.
template <class T>
bool is_aligned_forward(const NormForwardArgs& k, int64_t size) {
  const auto even = [&](const auto& t) { return is_even<T>(t, size); };
  return even(k.x) && even(k.z) && even(k.residual) && even(k.h) && even(k.y) && on_16_bytes(k.w) &&
         on_16_bytes(k.b);
}

/// Calls f with what k.options and the residual choose at compile time; false where nothing fits.
template <class T, class F>
bool by_member(const NormForwardArgs& k, const F& f) {
  const auto beside = [&]<bool kCentred>() {
    if (k.z && k.residual) return false;
    if (k.options.gate == GateOrder::norm_then_gate)
      return f.template operator()<kCentred, Beside::gate_last>();
    if (k.options.gate == GateOrder::gate_then_norm)
      return f.template operator()<kCentred, Beside::gate_first>();
    if (!k.residual) return f.template operator()<kCentred, Beside::nothing>();
    if (k.residual.dtype == dtype_of<T>) return f.template operator()<kCentred, Beside::residual>();
    if constexpr (sizeof(T) == 2) return f.template operator()<kCentred, Beside::wide_residual>();
    return false;
  };
  return k.options.kind == NormKind::layer ? beside.template operator()<true>()
                                           : beside.template operator()<false>();
}

}  // namespace norma::norm_cuda
