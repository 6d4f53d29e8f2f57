#pragma once

#include <algorithm>

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
  uint16_t element = 0;  ///< bytes
  bool dense = true;     ///< groups lie one after another

  /// The byte at which a group begins.
  __device__ __forceinline__ unsigned char* group(int item, int groups) const {
    if (dense) return data + int64_t{item} * group_bytes;
    const int row = item / groups;
    return data + row * row_bytes + int64_t{item - row * groups} * group_bytes;
  }
};

/// All that the fast forwards know, and no more, for a kernel of few rows waits for its arguments
/// too: what is read first lies together.
struct ForwardPlan {
  int size = 0, items = 0, groups = 1;          ///< items: groups of all rows
  int vecs = 1, lanes = kWarpSize, chunks = 1;  ///< RowOrder's
  int cluster = 1, ranks = 1;                   ///< blocks a group, and of those, with a chunk
  int warps = 1;                                ///< of a block
  int teams = 1, team_warps = 1;  ///< of those, that hold a group each, and the warps of one
  float share = 1;                ///< 1 / what a mean is divided by
  float terms = 1;                ///< what that is
  Epsilon<float> eps;             ///< inside the root
  float beta = 1;                 ///< of the gate
  GateActivation activation = GateActivation::silu;
  bool zero_centered = false;
  bool tiny_eps = false;      ///< so that a vanishing sum of squares counts
  bool own_weights = false;   ///< each group of a row has its own
  bool usual_weights = true;  ///< w and, of LayerNorm alone, b
  uint16_t weight_bytes = 4;  ///< of an element
  ForwardRows in[3];          ///< x, the residual, z
  ForwardRows y, h;
  const void *w = nullptr, *b = nullptr;
  float *mean = nullptr, *mean_rest = nullptr, *rstd = nullptr;
  double wide_eps = 0;
  uint32_t stage_bytes = 0;  ///< a warp's shared memory
  uint32_t plane_bytes = 0;  ///< of that, what its vectors of 16 bytes take
  int rounds = 1;            ///< of groups that a block, or a warp, takes in turn
  int longer = 0;            ///< blocks, or clusters, that do: the first ones; others take one
  bool paired = false;       ///< see swap_in_pairs(): neighbours have the same vectors of a group
  // Of norm_forward_skewed_kernel alone:
  int at_once = 1;          ///< groups of a warp
  int rest = 0;             ///< RowOrder's
  bool even = true;         ///< all vectors are whole and on 16 bytes
  uint32_t at[3] = {};      ///< where in it
  int64_t bytes[3] = {};    ///< of all of a tensor
  uint32_t turn_bytes = 0;  ///< from there to the next turn's
  uint32_t weights = 0;     ///< where in it a warp asked for them; 0: it did not

  /// Blocks, or clusters, for so many `units` of work: whole waves of those that are resident take
  /// about `rounds` each, and the last units are taken one by one, so that all are done at about
  /// the same time. Where so many rounds are wanted that the weights matter more, none is left for
  /// that.
  int take_turns(int units, int resident) {
    resident = std::max(1, resident);
    const int wave = rounds * resident, single = rounds > 8 ? 0 : std::min(wave, units / 4);
    // Rounded down where rounds are few: one wave more, and each had a round less.
    const int waves = std::max(1, (units - single + (rounds > 8 ? wave / 2 : 0)) / wave);
    longer = std::clamp(waves * resident, 1, std::max(1, units));
    rounds = std::max(1, (units - single) / longer);
    return units - longer * (rounds - 1);
  }
  /// The first unit of work of a block or cluster.
  __device__ __forceinline__ int first_of(int taker) const {
    return taker + min(taker, longer) * (rounds - 1);
  }
  __device__ __forceinline__ int turns_of(int taker) const { return taker < longer ? rounds : 1; }
  /// Whether every tensor's groups lie one after another.
  bool all_dense() const { return in[0].dense && in[1].dense && in[2].dense && y.dense && h.dense; }
  /// Whether weights of so many bytes an element are multiplied and added as they are.
  __host__ __device__ bool has_weights_of(size_t bytes) const {
    return usual_weights && weight_bytes == bytes;
  }
};

// A lane that takes a vector of 32 bytes in two pieces asks for half of each 32 bytes of memory at
// a time, and so for all of them twice. Two neighbours take the halves of the first one's vector,
// then those of the other's, and swap.

/// Two neighbours' vectors from their halves, as load_halves() has them, or back.
__device__ __forceinline__ void swap_in_pairs(Vector<float, 8>& r) {
  const bool odd = threadIdx.x & 1;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? r.words[i] : r.words[4 + i], 1);
    (odd ? r.words[i] : r.words[4 + i]) = other;
  }
}
/// p: this lane's own vector.
__device__ __forceinline__ Vector<float, 8> load_halves(const float* p) {
  const float* from = p - 4 * static_cast<int>(threadIdx.x & 1);
  const auto first = load_vector<From::once, 4>(from),
             second = load_vector<From::once, 4>(from + 8);
  Vector<float, 8> r;
#pragma unroll
  for (int i = 0; i < 4; ++i) r.words[i] = first.words[i], r.words[4 + i] = second.words[i];
  return r;
}
__device__ __forceinline__ void store_halves(float* p, const Vector<float, 8>& r) {
  auto* to = reinterpret_cast<uint4*>(p - 4 * static_cast<int>(threadIdx.x & 1));
  to[0] = make_uint4(r.words[0], r.words[1], r.words[2], r.words[3]);
  to[2] = make_uint4(r.words[4], r.words[5], r.words[6], r.words[7]);
}

/// A group in the registers of its threads, a chunk a warp, from the load to y. Vectors beyond its
/// end are zeros. kLate: a gate that comes last is read when its turn has come. kRest: there may be
/// elements behind the vectors.
template <class T, bool kCentred, Beside kBeside, bool kTogether, bool kLate = false,
          bool kRest = false>
struct ForwardGroup {
  using Acc = float;
  static constexpr bool kWide = kBeside == Beside::wide_residual;
  static constexpr bool kResidual = kWide || kBeside == Beside::residual;
  static constexpr bool kGateLast = kBeside == Beside::gate_last;
  static constexpr bool kGateFirst = kBeside == Beside::gate_first;
  using H = std::conditional_t<kWide, float, T>;
  /// Whether u are numbers of 16 bits (see about()).
  static constexpr bool kOf16Bits = sizeof(T) == 2 && !kWide && !kGateFirst;
  /// Whether statistics() leaves u less its mean, which spares the normalization that: where u is
  /// cheap to have again, should the row have to be scaled.
  static constexpr bool kLeavesCentred = kCentred && !kGateFirst;
  static constexpr int kWidth = kLaneWidth<T>, kVecs = kForwardChunk / (kWarpSize * kWidth);

  const ForwardPlan& plan;
  const int lane = threadIdx.x % kWarpSize;
  const int lanes, lane_in;  // of those that share a group: how many, which
  const int chunk;
  int column, mine;  // of this lane's first vector, and its vectors
  int terms;         // of the chunk
  // An element behind the vectors: whether this lane has one in every group, and in this one.
  bool owns_rest, has_rest = false;
  Acc rest = 0, rest_z = 0;
  Acc u[kVecs][kWidth];
  Vector<T, kWidth> z[kGateLast && !kLate ? kVecs : 1];

  __device__ __forceinline__ ForwardGroup(const ForwardPlan& p, int which)
      : plan(p), lanes(kTogether ? kWarpSize : p.lanes), lane_in(lane & (lanes - 1)), chunk(which) {
    const int per_chunk = plan.vecs * lanes * kWidth;
    column = chunk * per_chunk + lane_in * kWidth;
    const int whole = kRest ? plan.size - plan.rest : plan.size;
    const bool last = kRest && chunk == plan.chunks - 1;
    owns_rest = last && lane_in < plan.rest;
    terms = max(0, min(whole - chunk * per_chunk, per_chunk)) + (last ? plan.rest : 0);
    const int left = min(whole, (chunk + 1) * per_chunk) - column + lanes * kWidth - 1;
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
    if constexpr (kGateLast && !kLate) load_gates(z);
    if constexpr (kGateFirst) load_gates(other);
    if constexpr (kResidual) {
#pragma unroll
      for (int v = 0; v < kVecs; ++v)
        residual[v] = v < has ? load.template operator()<H>(1, v) : Vector<H, kWidth>{};
      if constexpr (kWide) {
        if (plan.paired) {
#pragma unroll
          for (int v = 0; v < kVecs; ++v) swap_in_pairs(residual[v]);
        }
      }
    }
#pragma unroll
    for (int v = 0; v < kVecs; ++v) packed[v].unpack(u[v]);
    if constexpr (kGateFirst) {
#pragma unroll
      for (int v = 0; v < kVecs; ++v)
        if (v < plan.vecs) gate(other[v], u[v]);
    }
    if constexpr (kResidual) {
      __syncwarp();  // all have read what neighbours may write
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
        Acc r[kWidth];
        residual[v].unpack(r);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) r[e] = add(u[v][e], r[e]);
        auto rounded = Vector<H, kWidth>::pack(r);
        rounded.unpack(u[v]);
        if constexpr (kWide)
          if (plan.paired) swap_in_pairs(rounded);
        if (v < has) put(v, rounded);
      }
    }
  }

  /// u of an element behind the vectors, from x and what is beside it (0 where there is none), both
  /// read before take(), whose results may lie over them; put(h).
  template <class Put>
  __device__ __forceinline__ void take_rest(bool has, Acc x, Acc beside, const Put& put) {
    has_rest = has;
    Acc one[1] = {x};
    const Acc by[1] = {beside};
    if constexpr (kGateLast) rest_z = beside;
    if constexpr (kGateFirst) gate(by, one);
    if constexpr (kResidual) {
      const H h = convert<H>(add(x, beside));
      one[0] = convert<Acc>(h);
      if (has) put(h);
    }
    rest = one[0];
  }

  /// u once more, from x or, beside a residual, from the h that take() put: 0 of load.
  template <class Load>
  __device__ __forceinline__ void take_again(int has, const Load& load) {
#pragma unroll
    for (int v = 0; v < kVecs; ++v)
      (v < has ? load.template operator()<H>(0, v) : Vector<H, kWidth>{}).unpack(u[v]);
  }

  __device__ __forceinline__ void gate(const Vector<T, kWidth>& by, Acc (&values)[kWidth]) const {
    Acc g[kWidth];
    by.unpack(g);
    gate(g, values);
  }
  template <int kElements>
  __device__ __forceinline__ void gate(const Acc (&g)[kElements], Acc (&values)[kElements]) const {
    constexpr bool kShort = sizeof(T) == 2;
    const GateActivation activation = plan.activation;
    if (activation == GateActivation::identity) {
#pragma unroll
      for (int e = 0; e < kElements; ++e) values[e] = mul(values[e], g[e]);
    } else if (activation == GateActivation::sigmoid) {
#pragma unroll
      for (int e = 0; e < kElements; ++e)
        values[e] = mul(values[e], kShort ? short_sigmoid(g[e]) : sigmoid(g[e]));
    } else {
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const Acc v = mul(plan.beta, g[e]);
        values[e] = mul(values[e], mul(g[e], kShort ? short_sigmoid(v) : sigmoid(v)));
      }
    }
  }

  // Sums over the group: meet(float2) tells all its warps this one's and returns those of all
  // chunks.

  /// total: of the chunk, and then of all of them.
  template <int kSums, class Meet>
  __device__ __forceinline__ void sum_chunks(Acc (&total)[kSums], Meet& meet) {
    if constexpr (!kTogether) return;
    const float2* told = meet(make_float2(total[0], total[kSums - 1]));
    // As chunks_sum has them; what lanes without a chunk would add is 0.
    const int sums = Meet::kMost < kWarpSize ? Meet::kMost : kWarpSize;
    float2 all{0, 0};
    if ((lane & (sums - 1)) < plan.chunks) all = told[lane & (sums - 1)];
    if constexpr (Meet::kMost > kWarpSize) {
#pragma unroll 1
      for (int c = lane + kWarpSize; c < plan.chunks; c += kWarpSize)
        all.x = add(all.x, told[c].x), all.y = add(all.y, told[c].y);
    }
    total[0] = lanes_sum(all.x, sums);
    if constexpr (kSums > 1) total[1] = lanes_sum(all.y, sums);
  }
  /// The largest |u|, or NaN: their bits are in this order.
  template <class Meet>
  __device__ __forceinline__ Acc largest_element(Meet& meet) {
    uint32_t most = 0;
#pragma unroll
    for (int v = 0; v < kVecs; ++v)
#pragma unroll
      for (int e = 0; e < kWidth; ++e) most = max(most, __float_as_uint(fabsf(u[v][e])));
    if constexpr (kRest) most = max(most, __float_as_uint(fabsf(rest)));
    for (int step = lanes / 2; step > 0; step /= 2)
      most = max(most, __shfl_xor_sync(0xffffffffu, most, step));
    if constexpr (kTogether) {
      const float2* told = meet(make_float2(__uint_as_float(most), 0));
#pragma unroll 1
      for (int c = 0; c < plan.chunks; ++c) most = max(most, __float_as_uint(told[c].x));
    }
    return __uint_as_float(most);
  }
  /// Σ u² or, by two passes over the registers, the mean as a pair and Σ (u − mean)².
  template <class Meet>
  __device__ __forceinline__ Acc squares(Stats<Acc>& s, int has, Meet& meet) {
    if constexpr (!kCentred) {
      LaneSum<Acc> part;
#pragma unroll
      for (int v = 0; v < kVecs; ++v)
#pragma unroll
        for (int e = 0; e < kWidth; ++e) part.product(e, u[v][e], u[v][e]);
      if constexpr (kRest) part.product(0, rest, rest);
      Acc total[1] = {lanes_sum(part.total(), lanes)};
      sum_chunks(total, meet);
      return total[0];
    } else {
      LaneSum<Acc> first, second[2];
#pragma unroll
      for (int v = 0; v < kVecs; ++v)
#pragma unroll
        for (int e = 0; e < kWidth; ++e) first.term(e, u[v][e]);
      if constexpr (kRest) first.term(0, rest);
      const Acc sum = lanes_sum(first.total(), lanes);
      Acc total[1] = {sum};
      sum_chunks(total, meet);
      s.mean = mean_of(total[0], plan.terms, plan.share);
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
        const Acc mean = v < has ? s.mean : Acc(0);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) {
          const Acc c = sub(u[v][e], mean);
          if constexpr (!kOf16Bits) second[0].term(e, c);
          second[1].product(e, c, c);
          if constexpr (kLeavesCentred) u[v][e] = c;
        }
      }
      if constexpr (kRest) {
        const Acc c = sub(rest, has_rest ? s.mean : Acc(0));
        if constexpr (!kOf16Bits) second[0].term(0, c);
        second[1].product(0, c, c);
        if constexpr (kLeavesCentred) rest = c;
      }
      Acc totals[2];
      if constexpr (kOf16Bits)
        totals[0] = about(s.mean, sum, kTogether ? static_cast<Acc>(terms) : plan.terms);
      else
        totals[0] = lanes_sum(second[0].total(), lanes);
      totals[1] = lanes_sum(second[1].total(), lanes);
      sum_chunks(totals, meet);
      s.mean_rest = mean_of(totals[0], plan.terms, plan.share);
      return about_mean(totals[1], s.mean_rest, plan.terms);
    }
  }
  /// Leaves u multiplied by the scale and, if kLeavesCentred, less the mean. again(): take_again().
  template <class Meet, class Again>
  __device__ __forceinline__ Stats<Acc> statistics(int has, Meet& meet, const Again& again) {
    Stats<Acc> s;
#pragma unroll 1
    for (int pass = 0;; ++pass) {
      const Acc sum_of_squares = squares(s, has, meet);
      s.rstd = s.scale == 1 ? rstd_of(sum_of_squares, plan.terms, plan.share, plan.eps)
                            : scaled_rstd(sum_of_squares, plan.terms, s.scale, plan.wide_eps);
      // All warps of a group agree; groups of one warp need not, and a scale of 1 changes nothing.
      const bool redo =
          !(sum_of_squares <= largest<Acc>()) || (plan.tiny_eps && sum_of_squares < Acc(1e-30f));
      if (pass == 1 || !__any_sync(0xffffffffu, redo)) return s;
      if constexpr (kLeavesCentred) again();
      const Acc most = largest_element(meet);
      s.scale = redo ? range_scale(most) : Acc(1);
#pragma unroll
      for (int v = 0; v < kVecs; ++v)
#pragma unroll
        for (int e = 0; e < kWidth; ++e) u[v][e] = mul(u[v][e], s.scale);
      rest = mul(rest, s.scale);
    }
  }
  /// As they are without a scale.
  static __device__ __forceinline__ Stats<Acc> unscaled(Stats<Acc> s) {
    if (s.scale != 1)
      s.mean = s.mean / s.scale, s.mean_rest = s.mean_rest / s.scale, s.rstd = mul(s.rstd, s.scale);
    return s;
  }
  __device__ __forceinline__ void write_stats(Stats<Acc> s, int item) const {
    s = unscaled(s);
    if (kCentred && plan.mean) plan.mean[item] = s.mean;
    if (kCentred && plan.mean_rest) plan.mean_rest[item] = s.mean_rest;
    plan.rstd[item] = s.rstd;
  }

  static __device__ __forceinline__ auto x_hat_by(const Stats<Acc>& stats) {
    return [normalized = Normalize<Acc>(stats)](Acc e) {
      if constexpr (kLeavesCentred)
        return fused(e, normalized.rstd, normalized.shift);
      else
        return kCentred ? normalized(e) : mul(e, normalized.rstd);
    };
  }
  /// y of an element behind the vectors. weight(which): what w (0) or b (1) has for it.
  template <class Weight>
  __device__ __forceinline__ T y_of_rest(const Stats<Acc>& stats, const Weight& weight) const {
    Acc gain = plan.w ? weight(0) : Acc(1);
    if (plan.zero_centered) gain = add(gain, Acc(1));
    Acc r[1] = {fused(x_hat_by(stats)(rest), gain, plan.b ? weight(1) : Acc(0))};
    const Acc by[1] = {rest_z};
    if constexpr (kGateLast) gate(by, r);
    return convert<T>(r[0]);
  }

  /// y, by put(v, vector). read(which, v, values): what w (0) or b (1) has for vector v, or
  /// anything where this lane has no such vector; gate_at(v): z's. kAny: weights may be absent, or
  /// about 1.
  template <bool kBias, bool kAny, class Read, class GateAt, class Put>
  __device__ __forceinline__ void write_by(const Stats<Acc>& stats, int has, const Read& read,
                                           const GateAt& gate_at, const Put& put) const {
    const auto x_hat = x_hat_by(stats);
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      Acc gain[kWidth], r[kWidth];
#pragma unroll
      for (int e = 0; e < kWidth; ++e) gain[e] = 1, r[e] = 0;
      if (!kAny || plan.w) read(0, v, gain);
      if (kBias && (!kAny || plan.b)) read(1, v, r);
      if (kAny && plan.zero_centered) {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) gain[e] = add(gain[e], Acc(1));
      }
#pragma unroll
      for (int e = 0; e < kWidth; ++e) r[e] = fused(x_hat(u[v][e]), gain[e], r[e]);
      if constexpr (kGateLast)
        if (v < plan.vecs) gate(gate_at(v), r);
      if (v < has) put(v, Vector<T, kWidth>::pack(r));
    }
  }
  /// The same, from vectors at<W>(which, v), where 0 and 1 are weights of T or float, and 2 is z if
  /// kLate.
  template <class At, class Put>
  __device__ __forceinline__ void write(const Stats<Acc>& stats, int has, const At& at,
                                        const Put& put) const {
    const auto narrow = [&](int which, int v, Acc(&values)[kWidth]) {
      at.template operator()<T>(which, v).unpack(values);
    };
    const auto wide = [&](int which, int v, Acc(&values)[kWidth]) {
      at.template operator()<float>(which, v).unpack(values);
    };
    const auto gate_at = [&](int v) {
      if constexpr (kLate)
        return at.template operator()<T>(2, v);
      else
        return z[kGateLast ? v : 0];
    };
    const bool are_narrow = plan.weight_bytes == sizeof(T);
    if (!plan.usual_weights)
      write_by<true, true>(
          stats, has,
          [&](int which, int v, Acc(&values)[kWidth]) {
            are_narrow ? narrow(which, v, values) : wide(which, v, values);
          },
          gate_at, put);
    else if (are_narrow)
      write_by<kCentred, false>(stats, has, narrow, gate_at, put);
    else if constexpr (sizeof(T) == 2)
      write_by<kCentred, false>(stats, has, wide, gate_at, put);
  }
};

/// What all fast forwards know of k.
template <class T>
ForwardPlan forward_plan(const NormForwardArgs& k, const RowOrder& order) {
  ForwardPlan plan;
  plan.vecs = order.vecs, plan.lanes = order.lanes, plan.chunks = order.chunks;
  plan.size = static_cast<int>(order.n);
  plan.groups = static_cast<int>(k.x.cols / order.n);
  plan.items = static_cast<int>(k.x.rows) * plan.groups;
  plan.terms = k.options.kind == NormKind::l2 ? 1.0f : static_cast<float>(order.n);
  plan.share = 1 / plan.terms;
  plan.eps = Epsilon<float>(k.options.eps);
  plan.wide_eps = k.options.eps;
  plan.tiny_eps = k.options.eps < 1e-20;
  plan.activation = k.options.activation;
  plan.zero_centered = k.options.zero_centered && k.w;
  plan.w = k.w.data, plan.b = k.b.data;
  plan.usual_weights =
      k.w && bool(k.b) == (k.options.kind == NormKind::layer) && !k.options.zero_centered;
  plan.mean = static_cast<float*>(k.mean.data);
  plan.mean_rest = static_cast<float*>(k.mean_rest.data);
  plan.rstd = static_cast<float*>(k.rstd.data);
  if (k.options.activation == GateActivation::swish) plan.beta = static_cast<float>(k.options.beta);
  const auto rows_of = [&](const auto& t) {
    ForwardRows r;
    r.data = static_cast<unsigned char*>(const_cast<void*>(static_cast<const void*>(t.data)));
    r.element = static_cast<uint16_t>(t ? size_of(t.dtype) : 0);
    r.row_bytes = t.row_stride * r.element;
    r.group_bytes = plan.size * r.element;
    r.dense = !t || t.rows <= 1 || t.row_stride == t.cols;
    return r;
  };
  plan.in[0] = rows_of(k.x), plan.in[1] = rows_of(k.residual), plan.in[2] = rows_of(k.z);
  plan.y = rows_of(k.y), plan.h = rows_of(k.h);
  const ConstVec& weights = k.w ? k.w : k.b;
  plan.weight_bytes = static_cast<uint16_t>(weights ? size_of(weights.dtype) : sizeof(T));
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
  return !(k.z && k.residual) && o.activation != GateActivation::gelu &&
         o.casting == Casting::wide && o.variance == Variance::two_pass && o.dropout == 0 &&
         !k.row_scale && !k.w2 && !k.x_hat && !k.y2 && bool(k.h) == bool(k.residual) &&
         (!k.h || k.h.dtype == k.residual.dtype) && k.y.dtype == dtype_of<T> && weight(k.w) &&
         weight(k.b) && (!k.w || !k.b || k.w.dtype == k.b.dtype);
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

// What forward() chooses among: a file for each dtype instantiates each of them, since all of them
// in one take two minutes to compile. False where the sizes do not fit.
template <class T>
bool forward_held(const Cuda& on, const NormForwardArgs& k);
template <class T>
bool forward_skewed(const Cuda& on, const NormForwardArgs& k);
/// By a plan that says who holds a group; see stays().
template <class T>
void forward_staying(const Cuda& on, const NormForwardArgs& k, ForwardPlan plan);

}  // namespace norma::norm_cuda
