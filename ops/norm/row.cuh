#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "norma/core/cuda/packed.cuh"
#include "norma/core/cuda/reduce.cuh"
#include "norma/core/philox.h"
#include "norma/core/view.h"
#include "norma/ops/norm/options.h"

// What the norm kernels share: elements of any dtype, the order of a row's sums, its statistics,
// gate and dropout. Products and sums are spelt out (__fmul_rn, __fadd_rn, fma), so that the
// compiler melts the same ones together in every kernel: plans differ in speed, not in bits.

namespace norma::norm_cuda {

__device__ __forceinline__ float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double mul(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ float sub(float a, float b) { return __fsub_rn(a, b); }
__device__ __forceinline__ double sub(double a, double b) { return __dsub_rn(a, b); }
__device__ __forceinline__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double fused(double a, double b, double c) { return __fma_rn(a, b, c); }

template <class Acc>
__device__ __forceinline__ constexpr Acc largest() {
  return std::is_same_v<Acc, double> ? Acc(1.7976931348623157e308) : Acc(3.4028234663852886e38);
}

// ---- Elements

/// Calls f.template operator()<T>() with a floating dtype; a branch equal for all threads.
template <class F>
__device__ __forceinline__ void by_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::float32:
      return f.template operator()<float>();
    case DType::float64:
      return f.template operator()<double>();
    case DType::bfloat16:
      return f.template operator()<BFloat16>();
    default:
      return f.template operator()<Float16>();
  }
}

/// kWidth elements from p on, or the first n of them and zeros, as Accs.
template <int kWidth, class T, class Acc>
__device__ __forceinline__ void read_from(const T* p, int n, Acc (&v)[kWidth]) {
  constexpr int kStep = kWidth < kWidest<T> ? kWidth : kWidest<T>;
  if (n >= kWidth && is_aligned<kStep>(p)) {
#pragma unroll
    for (int s = 0; s < kWidth; s += kStep) {
      const auto packed = load<kStep>(p + s);
#pragma unroll
      for (int e = 0; e < kStep; ++e) v[s + e] = convert<Acc>(packed[e]);
    }
  } else {
#pragma unroll
    for (int e = 0; e < kWidth; ++e) v[e] = e < n ? convert<Acc>(p[e]) : Acc(0);
  }
}
template <int kWidth, class T, class Acc>
__device__ __forceinline__ void write_to(T* p, int n, const Acc (&v)[kWidth]) {
  constexpr int kStep = kWidth < kWidest<T> ? kWidth : kWidest<T>;
  if (n >= kWidth && is_aligned<kStep>(p)) {
#pragma unroll
    for (int s = 0; s < kWidth; s += kStep) {
      Packed<T, kStep> packed;
#pragma unroll
      for (int e = 0; e < kStep; ++e) packed[e] = convert<T>(v[s + e]);
      store(p + s, packed);
    }
  } else {
#pragma unroll
    for (int e = 0; e < kWidth; ++e)
      if (e < n) p[e] = convert<T>(v[e]);
  }
}

/// Whole vectors on 16 bytes, without a look at the address.
template <int kWidth, class T, class Acc>
__device__ __forceinline__ void read_whole(const T* p, Acc (&v)[kWidth]) {
  constexpr int kStep = kWidth < kWidest<T> ? kWidth : kWidest<T>;
#pragma unroll
  for (int s = 0; s < kWidth; s += kStep) {
    const auto packed = load<kStep>(p + s);
#pragma unroll
    for (int e = 0; e < kStep; ++e) v[s + e] = convert<Acc>(packed[e]);
  }
}
template <int kWidth, class T, class Acc>
__device__ __forceinline__ void write_whole(T* p, const Acc (&v)[kWidth]) {
  constexpr int kStep = kWidth < kWidest<T> ? kWidth : kWidest<T>;
#pragma unroll
  for (int s = 0; s < kWidth; s += kStep) {
    Packed<T, kStep> packed;
#pragma unroll
    for (int e = 0; e < kStep; ++e) packed[e] = convert<T>(v[s + e]);
    store(p + s, packed);
  }
}

template <int kWidth, class Acc>
__device__ __forceinline__ void read(const ConstRows& t, int64_t i, int64_t c, int n,
                                     Acc (&v)[kWidth]) {
  by_dtype(t.dtype, [&]<class T>() { read_from(t.row<T>(i) + c, n, v); });
}
/// Of rows that are T or Acc.
template <class T, class View, int kWidth, class Acc>
__device__ __forceinline__ void read_either(const View& t, int64_t i, int64_t c, int n,
                                            Acc (&v)[kWidth]) {
  if (t.dtype == dtype_of<T>)
    read_from(static_cast<const T*>(t.template row<T>(i) + c), n, v);
  else
    read_from(static_cast<const Acc*>(t.template row<Acc>(i) + c), n, v);
}
template <class T, int kWidth, class Acc>
__device__ __forceinline__ void write_either(const Rows& t, int64_t i, int64_t c, int n,
                                             const Acc (&v)[kWidth]) {
  if (t.dtype == dtype_of<T>)
    write_to(t.row<T>(i) + c, n, v);
  else
    write_to(t.row<Acc>(i) + c, n, v);
}
template <int kWidth, class Acc>
__device__ __forceinline__ void write(const Rows& t, int64_t i, int64_t c, int n,
                                      const Acc (&v)[kWidth]) {
  by_dtype(t.dtype, [&]<class T>() { write_to(t.row<T>(i) + c, n, v); });
}
template <int kWidth, class Acc>
__device__ __forceinline__ void read(const ConstVec& t, int64_t c, int n, Acc (&v)[kWidth]) {
  by_dtype(t.dtype, [&]<class T>() { read_from(t.as<T>() + c, n, v); });
}
template <class Acc>
__device__ __forceinline__ Acc value_at(const ConstVec& t, int64_t i) {
  Acc v = 0;
  by_dtype(t.dtype, [&]<class T>() { v = convert<Acc>(t.at<T>(i)); });
  return v;
}
template <class Acc>
__device__ __forceinline__ void set_value(const Vec& t, int64_t i, Acc v) {
  by_dtype(t.dtype, [&]<class T>() { t.at<T>(i) = convert<T>(v); });
}
/// What v is after a stay in dtype.
template <class Acc>
__device__ __forceinline__ Acc rounded_to(DType dtype, Acc v) {
  by_dtype(dtype, [&]<class T>() { v = convert<Acc>(convert<T>(v)); });
  return v;
}

// ---- The order of a sum

/// Elements that a lane reads at a time: 16 bytes of x's dtype.
template <class T>
inline constexpr int kLaneWidth = 16 / int(sizeof(T));
/// Elements of a chunk, which one warp sums.
inline constexpr int kChunk = 512;

/// A group of n elements is cut into chunks of consecutive elements, and a chunk into vectors of
/// 16 bytes: lane l has the vectors l, l + lanes, … of it. A lane adds its elements in four sums,
/// the lanes' sums are added by butterflies, and the chunks' by one warp in the same way. It
/// follows from n and the dtype alone: plans only spread chunks over warps and blocks.
struct RowOrder {
  int64_t n = 0;
  int rest = 0;    ///< elements behind the vectors: one a lane, which adds it last
  int vecs = 1;    ///< vectors of a lane in a chunk
  int lanes = 32;  ///< that a chunk has work for, a power of two
  int chunks = 1;

  /// Elements of a chunk.
  __device__ __forceinline__ int terms(int chunk, int width) const {
    const int64_t per_chunk = int64_t{vecs} * kWarpSize * width;
    const int64_t left = n - rest - chunk * per_chunk;
    return static_cast<int>(left < 0           ? 0
                            : left < per_chunk ? left
                                               : per_chunk) +
           (chunk == chunks - 1 ? rest : 0);
  }

  RowOrder() = default;
  RowOrder(int64_t size, int width) : n(size) {
    const int64_t vectors = ceil_div(size, int64_t{width});
    if (size <= kChunk) {
      vecs = static_cast<int>(ceil_div(vectors, int64_t{kWarpSize}));
      while (lanes > 1 && lanes / 2 >= vectors) lanes /= 2;
    } else {
      vecs = kChunk / (kWarpSize * width);
      chunks = static_cast<int>(ceil_div(vectors, int64_t{kWarpSize} * vecs));
    }
  }
};

/// Elements of a chunk of a forward, whose lanes have 32 each: what a lane does once a row (its
/// place, the butterflies, a root) is spread over them.
inline constexpr int kForwardChunk = 1024;

/// The order of the forward's sums: longer chunks of the same number of vectors, and short rows in
/// fewer lanes. Vectors are whole, and what is behind them lies in the last chunk, an element a
/// lane: one more vector would leave half the lanes of 257 elements idle.
inline RowOrder forward_order(int64_t size, int width) {
  RowOrder order;
  order.n = size;
  order.rest = static_cast<int>(size % width);
  const int64_t vectors = size / width;
  const int64_t most = kForwardChunk / (kWarpSize * width);  // vectors of a lane
  order.chunks =
      static_cast<int>(std::max<int64_t>(1, ceil_div(vectors * width, int64_t{kForwardChunk})));
  if (order.chunks > 8) order.chunks = ceil_div(order.chunks, 16) * 16;  // all warps of a block
  // A float64 has general kernels alone, which leave other lanes idle.
  const int64_t least = width > 2 ? 1 : std::min<int64_t>(vectors, 4);
  while (order.lanes / 2 >= std::max<int64_t>(least, order.rest) &&
         order.lanes / 2 * most >= vectors)
    order.lanes /= 2;
  order.vecs = static_cast<int>(
      std::max<int64_t>(1, ceil_div(vectors, int64_t{order.lanes} * order.chunks)));
  return order;
}

/// A lane's share of a sum.
template <class Acc>
struct LaneSum {
  Acc v[4] = {0, 0, 0, 0};
  __device__ __forceinline__ void product(int e, Acc a, Acc b) { v[e % 4] = fused(a, b, v[e % 4]); }
  __device__ __forceinline__ void term(int e, Acc a) { v[e % 4] = add(v[e % 4], a); }
  __device__ __forceinline__ Acc total() const { return add(add(v[0], v[1]), add(v[2], v[3])); }
};

/// The sum over groups of `lanes` lanes, a power of two.
template <class Acc>
__device__ __forceinline__ Acc lanes_sum(Acc v, int lanes) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2)
    if (step < lanes) v = add(v, __shfl_xor_sync(0xffffffffu, v, step));
  return v;
}

/// The chunks' sums, in every lane: lane l adds the chunks l, l + 32, …
template <int kStride = 1, class Acc>
__device__ __forceinline__ Acc chunks_sum(const Acc* slots, int chunks) {
  const int lane = threadIdx.x % kWarpSize;
  Acc v = lane < chunks ? slots[kStride * lane] : Acc(0);
#pragma unroll 1
  for (int c = lane + kWarpSize; c < chunks; c += kWarpSize) v = add(v, slots[kStride * c]);
  return lanes_sum(v, kWarpSize);
}

/// The threads that work on one group: a warp, or all warps of a block, with memory for kMost sums
/// a chunk. A branch equal for all threads: every kernel twice would take as long again to compile.
template <class Acc>
struct Team {
  RowOrder order;
  Acc* slots;  // shared memory; of a warp none
  bool block = true;

  static __device__ int lane() { return threadIdx.x % kWarpSize; }
  __device__ int warp() const { return block ? threadIdx.x / kWarpSize : 0; }
  __device__ int warps() const { return block ? blockDim.x / kWarpSize : 1; }

  /// f(c, n) for every vector that this thread owns, element c on, n of them.
  template <int kWidth, class F>
  __device__ __forceinline__ void for_each(const F& f) const {
#pragma unroll 1
    for (int chunk = warp(); chunk < order.chunks; chunk += warps()) for_chunk<kWidth>(chunk, f);
  }
  template <int kWidth, class F>
  __device__ __forceinline__ void for_chunk(int chunk, const F& f) const {
    if (lane() >= order.lanes) return;
    const bool rest = chunk == order.chunks - 1 && lane() < order.rest;
#pragma unroll 1
    for (int v = 0; v < order.vecs + rest; ++v) {  // one place for f, which is long
      int64_t c = (int64_t{chunk} * order.vecs * kWarpSize + v * order.lanes + lane()) * kWidth;
      int64_t left = order.n - order.rest - c;
      if (v == order.vecs) c = order.n - order.rest + lane(), left = 1;
      if (left > 0) f(c, static_cast<int>(left < kWidth ? left : kWidth));
    }
  }

  /// kSums sums at once over the group: f(c, n, sums) adds the terms of one vector. chunk_sum(s, c,
  /// sum) is what chunk c tells the others of its sum s.
  template <int kWidth, int kSums, class F>
  __device__ __forceinline__ void sum(Acc (&total)[kSums], const F& f) const {
    sum<kWidth>(total, f, [](int, int, Acc v) { return v; });
  }
  template <int kWidth, int kSums, class F, class ChunkSum>
  __device__ __forceinline__ void sum(Acc (&total)[kSums], const F& f,
                                      const ChunkSum& chunk_sum) const {
    if (block) __syncthreads();  // the slots' last readers are done
#pragma unroll 1
    for (int chunk = warp(); chunk < order.chunks; chunk += warps()) {
      LaneSum<Acc> sums[kSums];
      for_chunk<kWidth>(chunk, [&](int64_t c, int n) { f(c, n, sums); });
#pragma unroll
      for (int s = 0; s < kSums; ++s) {
        const Acc v = lanes_sum(sums[s].total(), order.lanes);
        if (!block)
          total[s] = chunk_sum(s, chunk, __shfl_sync(0xffffffffu, v, 0));
        else if (lane() == 0)
          slots[s * order.chunks + chunk] = chunk_sum(s, chunk, v);
      }
    }
    if (!block) return;
    __syncthreads();
#pragma unroll
    for (int s = 0; s < kSums; ++s) total[s] = chunks_sum(slots + s * order.chunks, order.chunks);
  }

  /// Folds the lanes' values, and then the chunks': merge(a, b) changes a. For what is no sum.
  template <class V, class Merge>
  __device__ V merged(const V& mine, V* values, const Merge& merge) const {
    V v = mine;
    for (int step = kWarpSize / 2; step > 0; step /= 2) {
      const V other = v.from_lane(lane() ^ step);
      if (lane() & step) {  // both lanes of a pair merge in the same order
        V low = other;
        merge(low, v);
        v = low;
      } else {
        merge(v, other);
      }
    }
    if (block) {
      __syncthreads();
      if (lane() == 0) values[warp()] = v;
      __syncthreads();
      v = values[0];
      for (int w = 1; w < warps(); ++w) merge(v, values[w]);
      __syncthreads();
    }
    return v;
  }
};

// ---- Statistics

// Numbers of 16 bits whose deviation is small beside their mean are multiples of one power of two,
// and less than 2^12 times as large: in float32 the sum of a chunk of them is exact. Where the
// deviation is large, what a sum rounds away is small beside it. So a chunk's sum about the rounded
// mean need not be added up from its terms: it is their sum less that mean times their number.

/// The sum of a chunk about `mean`, from its sum.
template <class Acc>
__device__ __forceinline__ Acc about(Acc mean, Acc sum, Acc terms) {
  return fused(-mean, terms, sum);
}

/// x̂ = (scale · u − mean) · rstd − mean_rest · rstd. scale is 1, or the power of two by which a row
/// was multiplied whose squares leave the range of Acc.
template <class Acc>
struct Stats {
  Acc mean = 0, mean_rest = 0, rstd = 0, scale = 1;
  __device__ __forceinline__ Acc normalized(Acc u) const {
    return fused(sub(u, mean), rstd, -mul(mean_rest, rstd));
  }
};
/// x̂ in three operations.
template <class Acc>
struct Normalize {
  Acc mean, rstd, shift;
  __device__ explicit Normalize(const Stats<Acc>& s)
      : mean(s.mean), rstd(s.rstd), shift(-mul(s.mean_rest, s.rstd)) {}
  __device__ __forceinline__ Acc operator()(Acc u) const {
    return fused(sub(u, mean), rstd, shift);
  }
};
template <class Acc>
struct Moments {
  Acc mean = 0, mean_rest = 0, squares = 0;
};

/// Whether a sum of squares has left the range of Acc, or so nearly vanished that it and eps have
/// lost digits.
template <class Acc>
__device__ __forceinline__ bool out_of_range(Acc squares, double eps) {
  constexpr bool kWide = std::is_same_v<Acc, double>;
  return !(squares <= largest<Acc>()) ||
         (squares < (kWide ? Acc(1e-290) : Acc(1e-30f)) && eps < (kWide ? 1e-280 : 1e-20));
}
/// The sum of squares about the mean, from those about its rounded value.
template <class Acc>
__device__ __forceinline__ Acc about_mean(Acc squares, Acc rest, Acc size) {
  const Acc less = sub(squares, mul(mul(rest, rest), size));
  return less >= 0 ? less : mul(squares, Acc(0));  // keeps NaN
}
/// total / size, rounded once (Markstein), where share = 1 / size was rounded once; NaN where that
/// leaves the range.
template <class Acc>
__device__ __forceinline__ Acc mean_of(Acc total, Acc size, Acc share) {
  const Acc m = mul(total, share);
  return fused(fused(-m, size, total), share, m);
}
/// eps to twice the digits of Acc.
template <class Acc>
struct Epsilon {
  Acc value = 0, rest = 0;
  Epsilon() = default;
  __host__ __device__ explicit Epsilon(double eps)
      : value(static_cast<Acc>(eps)), rest(static_cast<Acc>(eps - static_cast<double>(value))) {}
};
/// 1/√(squares / size + eps), rounded once in float32: an error of rstd goes to all of a row the
/// same way. A step of Newton's from the hardware's root, with what the quotient and the sum lost.
/// share = 1 / size.
template <class Acc>
__device__ __forceinline__ Acc rstd_of(Acc squares, Acc size, Acc share, const Epsilon<Acc>& eps) {
  if constexpr (std::is_same_v<Acc, double>) {
    return 1 / sqrt(add(squares / size, eps.value));
  } else {
    const Acc mean = mul(squares, share), t = add(mean, eps.value), added = sub(t, mean);
    const Acc lost = add(sub(mean, sub(t, added)), sub(eps.value, added));
    const Acc rest = add(lost, fused(fused(-mean, size, squares), share, eps.rest));
    const Acc r = rsqrtf(t), tr = mul(t, r);
    const Acc error = fused(-mul(rest, r), r, fused(-fused(t, r, -tr), r, fused(-tr, r, Acc(1))));
    return error == error ? fused(mul(Acc(0.5), r), error, r) : r;  // t = 0, infinite or NaN
  }
}

/// Of a row that was scaled.
template <class Acc>
__device__ __noinline__ Acc scaled_rstd(Acc squares, Acc size, Acc scale, double eps) {
  // hypot: the scaled eps may itself leave the range.
  const double root = hypot(sqrt(static_cast<double>(squares) / static_cast<double>(size)),
                            static_cast<double>(scale) * sqrt(eps));
  // A constant row's own rstd may be too large for Acc; 0 times the largest number is 0 too.
  return static_cast<Acc>(root > 0 ? fmin(1 / root, static_cast<double>(largest<Acc>()))
                                   : 1 / root);
}
/// The power of two that brings the largest element near 1; 1 where that is 0, infinite or NaN.
template <class Acc>
__device__ __noinline__ Acc range_scale(Acc most) {
  if (!(most > 0 && most <= largest<Acc>())) return 1;
  constexpr int kMost = std::is_same_v<Acc, double> ? 1022 : 126;
  const int power = -ilogb(most);
  return ldexp(Acc(1), power > kMost ? kMost : power < -kMost ? -kMost : power);
}

template <class Acc>
struct RunningMoments {
  Acc mean = 0, squares = 0;
  float count = 0;  // exact to 2^24
  __device__ void add_one(Acc u) {
    count += 1;
    const Acc delta = sub(u, mean);
    mean = fused(delta, Acc(1) / Acc(count), mean);
    squares = fused(delta, sub(u, mean), squares);
  }
  __device__ void merge(const RunningMoments& o) {
    if (o.count == 0) return;
    const float both = count + o.count;
    const Acc delta = sub(o.mean, mean), share = Acc(o.count) / Acc(both);
    squares = add(squares, fused(mul(mul(delta, delta), share), Acc(count), o.squares));
    mean = fused(delta, share, mean);
    count = both;
  }
  __device__ RunningMoments from_lane(int lane) const {
    RunningMoments r;
    r.mean = __shfl_sync(0xffffffffu, mean, lane);
    r.squares = __shfl_sync(0xffffffffu, squares, lane);
    r.count = __shfl_sync(0xffffffffu, count, lane);
    return r;
  }
};
template <class Acc>
struct Largest {
  Acc v = 0;  // NaN where one is
  __device__ void take(Acc u) { v = !(u <= v) ? u : v; }
  __device__ void merge(const Largest& o) {
    if (!(v != v)) take(o.v);
  }
  __device__ Largest from_lane(int lane) const { return {__shfl_sync(0xffffffffu, v, lane)}; }
};

/// Statistics of a group whose elements u_of(c, n, u) gives, however often it is asked. of_16_bits:
/// they are numbers of 16 bits.
template <int kWidth, class Acc, class F>
__device__ Stats<Acc> statistics(const Team<Acc>& team, const NormOptions& o, const F& u_of,
                                 bool of_16_bits = false) {
  const Acc size = o.kind == NormKind::l2 ? Acc(1) : static_cast<Acc>(team.order.n);
  const Acc share = 1 / size;
  Acc scale = 1;
#pragma unroll 1
  for (;;) {  // twice at the most
    Moments<Acc> m;
    const auto scaled = [&](int64_t c, int n, Acc(&u)[kWidth]) {
      u_of(c, n, u);
      if (scale != 1)
        for (Acc& e : u) e = mul(e, scale);
    };
    if (o.variance == Variance::welford && o.kind == NormKind::layer) {
      RunningMoments<Acc> running;
      team.template for_each<kWidth>([&](int64_t c, int n) {
        Acc u[kWidth];
        scaled(c, n, u);
        for (int e = 0; e < kWidth; ++e)
          if (e < n) running.add_one(u[e]);
      });
      running = team.merged(running, reinterpret_cast<RunningMoments<Acc>*>(team.slots),
                            [](auto& a, const auto& b) { a.merge(b); });
      m = {running.mean, Acc(0), running.squares};
    } else {
      const bool centred = o.kind == NormKind::layer;
      Acc total[2];
#pragma unroll 1
      for (int pass = centred ? 0 : 1; pass < 2; ++pass) {
        const bool first = pass == 0;  // Σ u; then Σ (u − mean) and Σ (u − mean)²
        team.template sum<kWidth>(
            total,
            [&](int64_t c, int n, LaneSum<Acc>(&sums)[2]) {
              Acc u[kWidth];
              scaled(c, n, u);
              for (int e = 0; e < kWidth; ++e) {
                if (e >= n) continue;
                const Acc v = first || !centred ? u[e] : sub(u[e], m.mean);
                sums[0].term(e, of_16_bits ? u[e] : v);
                sums[1].product(e, v, v);
              }
            },
            [&](int s, int chunk, Acc v) {
              if (!of_16_bits || s != 0 || first) return v;
              return about(m.mean, v, static_cast<Acc>(team.order.terms(chunk, kWidth)));
            });
        if (first) m.mean = mean_of(total[0], size, share);
      }
      m.squares = total[1];
      if (centred) {
        m.mean_rest = mean_of(total[0], size, share);
        m.squares = about_mean(total[1], m.mean_rest, size);
      }
    }
    if (scale != 1) return {m.mean, m.mean_rest, scaled_rstd(m.squares, size, scale, o.eps), scale};
    if (out_of_range(m.squares, o.eps)) {
      Largest<Acc> most;
      team.template for_each<kWidth>([&](int64_t c, int n) {
        Acc u[kWidth];
        u_of(c, n, u);
        for (int e = 0; e < kWidth; ++e)
          if (e < n && !(most.v != most.v)) most.take(fabs(u[e]));
      });
      most = team.merged(most, reinterpret_cast<Largest<Acc>*>(team.slots),
                         [](auto& a, const auto& b) { a.merge(b); });
      scale = range_scale(most.v);
      if (scale != 1) continue;
    }
    return {m.mean, m.mean_rest, rstd_of(m.squares, size, share, Epsilon<Acc>(o.eps)), Acc(1)};
  }
}

// ---- Gate, dropout

/// σ(v) within 5 ulp: 2^t of the hardware, with what the product t = −v · log2(e) rounded away.
__device__ __forceinline__ float sigmoid(float v) {
  constexpr float kLog2E = 1.44269502f, kLog2ERest = 1.92596299e-8f, kLn2 = 0.693147182f;
  const float t = mul(v, -kLog2E);
  const float rest = fused(v, -kLog2ERest, fused(v, -kLog2E, -t));
  float e = exp2_fast(t);
  e = fabsf(t) <= 126 ? fused(e, mul(rest, kLn2), e) : e;  // else rest may be NaN beside e = ∞
  return reciprocal_fast(add(1.0f, e));
}
/// The same within 2^-18, enough for 16 bits.
__device__ __forceinline__ float short_sigmoid(float v) {
  return reciprocal_fast(add(1.0f, exp2_fast(mul(v, -1.44269502f))));
}
__device__ __forceinline__ double sigmoid(double v) { return 1 / (1 + ::exp(-v)); }

/// s(z), and its slope.
template <class Acc>
struct Gate {
  Acc value, slope;
};
/// z · s, and its slope s + v · s · (1 − s), where v = β · z and s = σ(v).
template <class Acc>
__device__ __forceinline__ Gate<Acc> swish_of(Acc z, Acc v, Acc s) {
  return {mul(z, s), fused(mul(v, s), sub(Acc(1), s), s)};
}
/// Out of line: erfc is long, and its callers many.
template <class Acc>
__device__ __noinline__ Gate<Acc> gelu_of(Acc z) {
  const Acc cdf = mul(Acc(0.5), erfc(mul(z, Acc(-0.70710678118654752440))));
  const Acc density = mul(exp_of(mul(mul(z, z), Acc(-0.5))), Acc(0.39894228040143267794));
  return {mul(z, cdf), fused(z, density, cdf)};
}
/// The activations short enough for a fast kernel: all but gelu. kShort: by the short sigmoid.
template <bool kShort = false, class Acc>
__device__ __forceinline__ Gate<Acc> short_gate_of(const NormOptions& o, Acc z) {
  if (o.activation == GateActivation::identity) return {z, Acc(1)};
  const Acc v = o.activation == GateActivation::swish ? mul(static_cast<Acc>(o.beta), z) : z;
  const Acc s = kShort ? short_sigmoid(v) : sigmoid(v);
  if (o.activation == GateActivation::sigmoid) return {s, mul(s, sub(Acc(1), s))};
  return swish_of(z, v, s);
}
template <bool kShort = false, class Acc>
__device__ __forceinline__ Gate<Acc> gate_of(const NormOptions& o, Acc z) {
  return o.activation == GateActivation::gelu ? gelu_of(z) : short_gate_of<kShort>(o, z);
}

/// 1 / (1 − p), or 0 where an element is dropped, of the elements first … first + n − 1.
template <int kWidth, class Acc>
__device__ __forceinline__ void draw_mask(const NormOptions& o, int64_t first,
                                          Acc (&mask)[kWidth]) {
  const auto p = static_cast<float>(o.dropout);
  const auto kept = static_cast<Acc>(1 / (1 - o.dropout));
  std::array<uint32_t, 4> words{};
#pragma unroll
  for (int e = 0; e < kWidth; ++e) {
    const auto at = static_cast<uint64_t>(first + e);
    if (e == 0 || at % 4 == 0) words = random_words(o.key, at / 4);
    const uint32_t w = at % 4 == 0   ? words[0]
                       : at % 4 == 1 ? words[1]
                       : at % 4 == 2 ? words[2]
                                     : words[3];
    mask[e] = static_cast<float>(w >> 8) * 0x1p-24f < p ? Acc(0) : kept;
  }
}

}  // namespace norma::norm_cuda
