#pragma once

#include <algorithm>

#include "norma/ops/norm/cluster.cuh"
#include "norma/ops/norm/forward_any.cuh"

namespace norma::norm_cuda {

/// How norm_forward_held_kernel runs: who holds what.
struct HeldPlan {
  RowOrder order;
  int64_t groups = 1, items = 0;
  int cluster = 1;  ///< blocks a group, of a block team
};

/// 16 bytes that nobody here reads again.
template <class T>
__device__ __forceinline__ Packed<T, kLaneWidth<T>> load_once(const T* p) {
  union {
    uint32_t words[4];
    Packed<T, kLaneWidth<T>> packed;
  } r{};
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(r.words[0]), "=r"(r.words[1]), "=r"(r.words[2]), "=r"(r.words[3])
      : "l"(p));
  return r.packed;
}
template <bool kAligned, class T>
__device__ __forceinline__ Packed<T, kLaneWidth<T>> load_once(const T* p, int n) {
  if constexpr (kAligned)
    return n > 0 ? load_once(p) : Packed<T, kLaneWidth<T>>{};
  else
    return load_some<kLaneWidth<T>>(p, n, convert<T>(0.0f));
}

/// The activations short enough for a fast kernel.
template <class Acc>
__device__ __forceinline__ Gate<Acc> short_gate_of(const NormOptions& o, Acc z) {
  if (o.activation == GateActivation::identity) return {z, Acc(1)};
  const Acc v = o.activation == GateActivation::swish ? mul(static_cast<Acc>(o.beta), z) : z;
  const Acc s = sigmoid(v);
  if (o.activation == GateActivation::sigmoid) return {s, mul(s, sub(Acc(1), s))};
  return {mul(z, s), mul(s, fused(v, sub(Acc(1), s), Acc(1)))};
}

/// Weights of T or float: a vector of them.
template <class T, bool kAligned, int kWidth>
__device__ __forceinline__ void read_weight(const ConstVec& w, int64_t c, int n,
                                            float (&v)[kWidth]) {
  const bool narrow = w.dtype == dtype_of<T>;
  if constexpr (kAligned) {
    if (narrow)
      read_whole(w.as<T>() + c, v);
    else
      read_whole(w.as<float>() + c, v);
  } else {
    if (narrow)
      read_from(w.as<T>() + c, n, v);
    else
      read_from(w.as<float>() + c, n, v);
  }
}
template <bool kAligned, class T, class Acc, int kWidth>
__device__ __forceinline__ void write_vector(T* p, int n, const Acc (&v)[kWidth]) {
  if constexpr (kAligned) {
    if (n > 0) write_whole(p, v);
  } else {
    write_to(p, n, v);
  }
}

/// The plain members, each tensor read once: a group's elements stay in registers, of part of a
/// warp, a warp, a block or a cluster, kHold chunks of kVecs vectors a warp.
///   bytes  rows · D · (x, y and where they are: z, residual, h); w and b come from the caches
///   bound  memory
template <class T, GateOrder kGate, int kVecs, int kHold, bool kBlock, bool kAligned>
__global__ void __launch_bounds__(kBlock ? 512 : 128, kBlock&& kHold == 1 ? 2 : 1)
    norm_forward_held_kernel(const __grid_constant__ NormForwardArgs k,
                             const __grid_constant__ HeldPlan plan) {
  using Acc = float;
  constexpr int kWidth = kLaneWidth<T>, kVectors = kVecs * kHold;
  __shared__ Acc slots[kBlock ? 2 : 1][2][kBlock ? 512 : 1];
  const NormOptions& o = k.options;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int warps = blockDim.x / kWarpSize, lanes = kBlock ? kWarpSize : plan.order.lanes;
  const int size = static_cast<int>(plan.order.n);
  const int bits = 31 - __clz(lanes), lane_in = lane & (lanes - 1);
  const uint32_t rank = kBlock && plan.cluster > 1 ? cluster_rank() : 0;
  int64_t item;
  if constexpr (kBlock)
    item = plan.cluster > 1 ? blockIdx.x / plan.cluster : blockIdx.x;
  else
    item = ((int64_t{blockIdx.x} * warps + warp) << (5 - bits)) + (lane >> bits);
  const bool active = item < plan.items;
  if (!active) item = plan.items - 1;  // for company in the shuffles
  const GroupPlace p(item, plan.groups, size);
  const int chunk0 = kBlock ? (static_cast<int>(rank) * warps + warp) * kHold : 0;
  const auto column = [&](int v) {
    if constexpr (kBlock)
      return ((chunk0 * kVecs + v) * kWarpSize + lane) * kWidth;
    else
      return (v * lanes + lane_in) * kWidth;
  };
  const auto count = [&](int v) {
    const int left = size - column(v);
    if constexpr (kAligned) return left > 0 ? kWidth : 0;
    return left >= kWidth ? kWidth : left > 0 ? left : 0;
  };

  Packed<T, kWidth> packed[kVectors], z[kGate == GateOrder::no_gate ? 1 : kVectors];
  {
    const T* x = k.x.row<T>(p.row) + p.first;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) packed[v] = load_once<kAligned>(x + column(v), count(v));
    if constexpr (kGate != GateOrder::no_gate) {
      const T* from = k.z.row<T>(p.row) + p.first;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) z[v] = load_once<kAligned>(from + column(v), count(v));
    }
  }
  Acc u[kVectors][kWidth];
#pragma unroll
  for (int v = 0; v < kVectors; ++v)
#pragma unroll
    for (int e = 0; e < kWidth; ++e) u[v][e] = convert<Acc>(packed[v][e]);
  if (k.residual) {
    if (k.residual.dtype == dtype_of<T>) {
      const T* r = k.residual.row<T>(p.row) + p.first;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) packed[v] = load_once<kAligned>(r + column(v), count(v));
#pragma unroll
      for (int v = 0; v < kVectors; ++v)
#pragma unroll
        for (int e = 0; e < kWidth; ++e) u[v][e] = add(u[v][e], convert<Acc>(packed[v][e]));
    } else {
      const Acc* r = k.residual.row<Acc>(p.row) + p.first;
      Acc other[kVectors][kWidth];
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        if constexpr (kAligned) {
          if (count(v) > 0)
            read_whole(r + column(v), other[v]);
          else
            for (Acc& e : other[v]) e = 0;
        } else {
          read_from(r + column(v), count(v), other[v]);
        }
      }
#pragma unroll
      for (int v = 0; v < kVectors; ++v)
#pragma unroll
        for (int e = 0; e < kWidth; ++e) u[v][e] = add(u[v][e], other[v][e]);
    }
    if (k.h.dtype == dtype_of<T>) {
      T* h = k.h.row<T>(p.row) + p.first;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        if (active) write_vector<kAligned>(h + column(v), count(v), u[v]);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) u[v][e] = convert<Acc>(convert<T>(u[v][e]));
      }
    } else {
      Acc* h = k.h.row<Acc>(p.row) + p.first;
#pragma unroll
      for (int v = 0; v < kVectors; ++v)
        if (active) write_vector<kAligned>(h + column(v), count(v), u[v]);
    }
  }
  if constexpr (kGate == GateOrder::gate_then_norm) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
#pragma unroll
      for (int e = 0; e < kWidth; ++e)
        u[v][e] = mul(u[v][e], short_gate_of(o, convert<Acc>(z[v][e])).value);
  }

  // Between the warps of a group: `parity` alternates, so that one barrier a time is enough.
  int parity = 0;
  const auto publish = [&](int q, int s, Acc v) {
    if (chunk0 + q >= plan.order.chunks) return;
    Acc* slot = &slots[parity][s][chunk0 + q];
    if (plan.cluster == 1) {
      if (lane == 0) *slot = v;
    } else if (lane < plan.cluster) {
      store_in_cluster(address_in(shared_address(slot), static_cast<uint32_t>(lane)), v);
    }
  };
  const auto meet = [&] {
    if (plan.cluster == 1)
      __syncthreads();
    else
      cluster_sync();
  };
  const auto totals = [&](const LaneSum<Acc>(&sums)[kHold][2], int needed, Acc(&total)[2]) {
#pragma unroll
    for (int s = 0; s < 2; ++s)
      if (s < needed) {
        if constexpr (kBlock) {
#pragma unroll
          for (int q = 0; q < kHold; ++q) publish(q, s, lanes_sum(sums[q][s].total(), kWarpSize));
        } else {
          total[s] = lanes_sum(sums[0][s].total(), lanes);
        }
      }
    if constexpr (kBlock) {
      meet();
#pragma unroll
      for (int s = 0; s < 2; ++s)
        if (s < needed) total[s] = chunks_sum(slots[parity][s], plan.order.chunks);
      parity ^= 1;
    }
  };
  const Acc terms = o.kind == NormKind::l2 ? Acc(1) : static_cast<Acc>(size);
  const bool centred = o.kind == NormKind::layer;
  Stats<Acc> stats;
#pragma unroll 1
  for (int pass = 0;; ++pass) {
    Acc squares, total[2];
    LaneSum<Acc> sums[kHold][2];
    if (centred) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v)
#pragma unroll
        for (int e = 0; e < kWidth; ++e) sums[v / kVecs][0].term(e, u[v][e]);
      totals(sums, 1, total);
      stats.mean = total[0] / terms;
#pragma unroll
      for (int q = 0; q < kHold; ++q) sums[q][0] = sums[q][1] = LaneSum<Acc>();
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int n = count(v);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) {
          const Acc c = e < n ? sub(u[v][e], stats.mean) : Acc(0);
          sums[v / kVecs][0].term(e, c);
          sums[v / kVecs][1].product(e, c, c);
        }
      }
      totals(sums, 2, total);
      stats.mean_rest = total[0] / terms;
      squares = about_mean(total[1], stats.mean_rest, terms);
    } else {
#pragma unroll
      for (int v = 0; v < kVectors; ++v)
#pragma unroll
        for (int e = 0; e < kWidth; ++e) sums[v / kVecs][0].product(e, u[v][e], u[v][e]);
      totals(sums, 1, total);
      squares = total[0];
    }
    stats.rstd = stats.scale == 1 ? rstd_of(squares, terms, o.eps)
                                  : scaled_rstd(squares, terms, stats.scale, o.eps);
    // All threads of a block agree; rows of one warp need not, and a scale of 1 changes nothing.
    const bool redo = out_of_range(squares, o.eps);
    if (pass == 1 || !__any_sync(0xffffffffu, redo)) break;
    Acc most = 0;
    const auto take = [&](Acc other) {
      if (!(most != most) && !(other <= most)) most = other;  // NaN stays
    };
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
#pragma unroll
      for (int e = 0; e < kWidth; ++e) take(fabsf(u[v][e]));
    for (int step = lanes / 2; step > 0; step /= 2) take(__shfl_xor_sync(0xffffffffu, most, step));
    if constexpr (kBlock) {
#pragma unroll
      for (int q = 0; q < kHold; ++q) publish(q, 0, most);
      meet();
      most = 0;
      for (int c = 0; c < plan.order.chunks; ++c) take(slots[parity][0][c]);
      parity ^= 1;
    }
    stats.scale = redo ? range_scale(most) : Acc(1);
    if (!__any_sync(0xffffffffu, stats.scale != 1)) break;
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
#pragma unroll
      for (int e = 0; e < kWidth; ++e) u[v][e] = mul(u[v][e], stats.scale);
  }
  if ((kBlock ? threadIdx.x == 0 && rank == 0 : lane_in == 0) && active) {
    if (k.mean) k.mean.at<Acc>(p.stat) = stats.mean / stats.scale;
    if (k.mean_rest) k.mean_rest.at<Acc>(p.stat) = stats.mean_rest / stats.scale;
    k.rstd.at<Acc>(p.stat) = mul(stats.rstd, stats.scale);
  }
  if (!active) return;
  T* y = k.y.row<T>(p.row) + p.first;
  const int64_t w_first = k.w.n == size ? 0 : p.first, b_first = k.b.n == size ? 0 : p.first;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int n = count(v);
    if (n == 0) continue;
    Acc gain[kWidth], bias[kWidth];
#pragma unroll
    for (int e = 0; e < kWidth; ++e) gain[e] = 1, bias[e] = 0;
    if (k.w) {
      read_weight<T, kAligned>(k.w, w_first + column(v), n, gain);
      if (o.zero_centered)
#pragma unroll
        for (int e = 0; e < kWidth; ++e) gain[e] = add(gain[e], Acc(1));
    }
    if (k.b) read_weight<T, kAligned>(k.b, b_first + column(v), n, bias);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      Acc r = fused(stats.normalized(u[v][e]), gain[e], bias[e]);
      if constexpr (kGate == GateOrder::norm_then_gate)
        r = mul(r, short_gate_of(o, convert<Acc>(z[v][e])).value);
      bias[e] = r;
    }
    write_vector<kAligned>(y + column(v), n, bias);
  }
}

/// Whether the members and sizes of forward_held cover k.
template <class T>
bool can_hold(const NormForwardArgs& k, int64_t size) {
  const NormOptions& o = k.options;
  const auto weight = [](const ConstVec& w) {
    return !w || w.dtype == dtype_of<T> || w.dtype == DType::float32;
  };
  return o.activation != GateActivation::gelu && o.casting == Casting::wide &&
         o.variance == Variance::two_pass && o.dropout == 0 && !k.row_scale && !k.w2 && !k.x_hat &&
         !k.y2 && bool(k.h) == bool(k.residual) && k.y.dtype == dtype_of<T> && weight(k.w) &&
         weight(k.b) && !std::is_same_v<T, double> && size <= 512 * kChunk;
}
/// Whether every vector of a group is whole and on 16 bytes.
template <class T, class View>
bool is_even(const View& t, int64_t size) {
  if (!t) return true;
  const int64_t width = 16 / size_of(t.dtype);
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && size % kLaneWidth<T> == 0 &&
         (t.row_stride % width == 0 || t.rows <= 1);
}

template <class View>
bool on_16_bytes(const View& t) {
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0;
}

template <class T, GateOrder kGate>
void forward_held(const Cuda& on, const NormForwardArgs& k) {
  const int64_t size = k.options.group == 0 ? k.x.cols : k.options.group;
  HeldPlan plan{.order = RowOrder(size, kLaneWidth<T>), .groups = k.x.cols / size};
  plan.items = k.x.rows * plan.groups;
  const auto even = [&](const auto& t) { return is_even<T>(t, size); };
  const bool aligned = even(k.x) && even(k.z) && even(k.residual) && even(k.h) && even(k.y) &&
                       on_16_bytes(k.w) && on_16_bytes(k.b);
  if (plan.order.chunks == 1) {
    constexpr int kThreads = 128;
    const int64_t teams = kThreads / plan.order.lanes;
    const auto go = [&]<int kVecs>() {
      launch(on, {.grid = grid_for(plan.items, static_cast<int>(teams)), .block = dim3(kThreads)},
             aligned ? norm_forward_held_kernel<T, kGate, kVecs, 1, false, true>
                     : norm_forward_held_kernel<T, kGate, kVecs, 1, false, false>,
             k, plan);
    };
    const int vecs = plan.order.vecs;
    if (vecs == 1) return go.template operator()<1>();
    if (vecs == 2) return go.template operator()<2>();
    if (vecs == 3) return go.template operator()<3>();
    if constexpr (sizeof(T) == 4) {
      if (vecs > 6) return go.template operator()<8>();
      if (vecs > 4) return go.template operator()<6>();
    }
    return go.template operator()<4>();
  }
  constexpr int kVecs = kChunk / (kWarpSize * kLaneWidth<T>);
  const auto go = [&]<int kHold>(int most_warps) {
    const int in_all = ceil_div(plan.order.chunks, kHold);
    while (plan.cluster * most_warps < in_all) plan.cluster *= 2;
    const int warps = ceil_div(in_all, plan.cluster);
    launch(on,
           {.grid = dim3(static_cast<unsigned>(plan.items * plan.cluster)),
            .block = dim3(static_cast<unsigned>(warps * kWarpSize)),
            .cluster = static_cast<unsigned>(plan.cluster)},
           aligned ? norm_forward_held_kernel<T, kGate, kVecs, kHold, true, true>
                   : norm_forward_held_kernel<T, kGate, kVecs, kHold, true, false>,
           k, plan);
  };
  if (plan.order.chunks <= 256)
    go.template operator()<1>(16);
  else
    go.template operator()<2>(16);
}

}  // namespace norma::norm_cuda
