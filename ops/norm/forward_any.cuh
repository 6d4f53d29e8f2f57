#pragma once

#include <algorithm>

#include "norma/ops/norm/kernels.h"
#include "norma/ops/norm/plain.cuh"

namespace norma::norm_cuda {

inline constexpr int kAnyThreads = 256;

/// Every member of the family and every row: a warp or a block a group, which reads it two or three
/// times, from the caches where it fits. Members and sizes with kernels of their own pass by it.
template <class T>
__global__ void __launch_bounds__(kAnyThreads)
    norm_forward_any_kernel(const __grid_constant__ NormForwardArgs k, RowOrder order, bool block) {
  using Acc = stats_t<T>;
  constexpr int kWidth = kLaneWidth<T>;
  extern __shared__ __align__(128) unsigned char memory[];
  const Team<Acc> team{order, reinterpret_cast<Acc*>(memory), block};
  const NormOptions& o = k.options;
  const int64_t cols = k.x.cols, size = order.n, groups = cols / size, items = k.x.rows * groups;
  const int64_t teams = block ? gridDim.x : int64_t{gridDim.x} * (kAnyThreads / kWarpSize);
  const int64_t first =
      block ? blockIdx.x
            : int64_t{blockIdx.x} * (kAnyThreads / kWarpSize) + threadIdx.x / kWarpSize;
  for (int64_t item = first; item < items; item += teams) {
    const GroupPlace p(item, groups, size);
    if (k.h) {
      const Acc scale = k.row_scale ? value_at<Acc>(k.row_scale, p.row) : Acc(1);
      team.template for_each<kWidth>([&](int64_t c, int n) {
        Acc h[kWidth], other[kWidth];
        read_from(k.x.row<T>(p.row) + p.first + c, n, h);
        if (o.dropout > 0) {
          draw_mask(o, p.row * cols + p.first + c, other);
          for (int e = 0; e < kWidth; ++e) h[e] = other[e] == 0 ? Acc(0) : mul(h[e], other[e]);
        }
        if (k.row_scale)
          for (Acc& e : h) e = mul(e, scale);
        if (k.residual) {
          read_either<T>(k.residual, p.row, p.first + c, n, other);
          for (int e = 0; e < kWidth; ++e) h[e] = add(h[e], other[e]);
        }
        write_either<T>(k.h, p.row, p.first + c, n, h);  // rounded: what all below reads
      });
    }
    const auto u_of = [&](int64_t c, int n, Acc(&u)[kWidth]) {
      if (k.h)
        read_either<T>(k.h, p.row, p.first + c, n, u);
      else
        read_from(k.x.row<T>(p.row) + p.first + c, n, u);
      if (o.gate != GateOrder::gate_then_norm) return;
      Acc z[kWidth];
      read_from(k.z.row<T>(p.row) + p.first + c, n, z);
      for (int e = 0; e < kWidth; ++e) u[e] = mul(u[e], gate_of<sizeof(T) == 2>(o, z[e]).value);
    };
    const bool of_16_bits =
        sizeof(T) == 2 && o.gate != GateOrder::gate_then_norm && (!k.h || k.h.dtype == dtype_of<T>);
    const Stats<Acc> s = statistics<kWidth>(team, o, u_of, of_16_bits);
    const Normalize<Acc> x_hat_of(s);
    if (team.lane() == 0 && team.warp() == 0) {
      if (k.mean) k.mean.at<Acc>(p.stat) = s.mean / s.scale;
      if (k.mean_rest) k.mean_rest.at<Acc>(p.stat) = s.mean_rest / s.scale;
      k.rstd.at<Acc>(p.stat) = mul(s.rstd, s.scale);
    }
    team.template for_each<kWidth>([&](int64_t c, int n) {
      Acc x_hat[kWidth];
      u_of(c, n, x_hat);
      for (Acc& e : x_hat) e = x_hat_of(s.scale == 1 ? e : mul(e, s.scale));
      if (k.x_hat) write_to(k.x_hat.row<T>(p.row) + p.first + c, n, x_hat);
      if (o.casting == Casting::rounded)
        for (Acc& e : x_hat) e = convert<Acc>(convert<T>(e));
#pragma unroll 1
      for (int which = 0; which < (k.y2 ? 2 : 1); ++which) {
        const ConstVec &w = which ? k.w2 : k.w, &b = which ? k.b2 : k.b;
        Acc gain[kWidth], y[kWidth];
        for (int e = 0; e < kWidth; ++e) gain[e] = 1, y[e] = 0;
        const int64_t at = (w ? w.n : b.n) == cols ? p.first + c : c;
        if (w) {
          read(w, at, n, gain);
          if (o.zero_centered)
            for (Acc& e : gain) e = add(e, Acc(1));
        }
        if (b) read(b, at, n, y);
        for (int e = 0; e < kWidth; ++e) y[e] = fused(x_hat[e], gain[e], y[e]);
        if (o.gate == GateOrder::norm_then_gate) {
          Acc z[kWidth];
          read_from(k.z.row<T>(p.row) + p.first + c, n, z);
          for (int e = 0; e < kWidth; ++e) y[e] = mul(y[e], gate_of<sizeof(T) == 2>(o, z[e]).value);
        }
        write(which ? k.y2 : k.y, p.row, p.first + c, n, y);
      }
    });
  }
}

/// Shared memory of a block team: sums of each chunk, or a value of each warp that is no sum.
template <class Acc>
size_t team_memory(const RowOrder& order, int sums) {
  const size_t chunks = sizeof(Acc) * static_cast<size_t>(sums) * static_cast<size_t>(order.chunks);
  return chunks > 1024 ? chunks : 1024;
}

template <class T>
void forward_any(const Cuda& on, const NormForwardArgs& k) {
  using Acc = stats_t<T>;
  const int64_t size = k.options.group == 0 ? k.x.cols : k.options.group;
  const RowOrder order = forward_order(size, kLaneWidth<T>);
  const int64_t items = k.x.rows * (k.x.cols / size);
  constexpr int64_t kMost = int64_t{1} << 30;
  const bool block = order.chunks > 1;
  const int warps =
      block ? std::min(kAnyThreads / kWarpSize, order.chunks) : kAnyThreads / kWarpSize;
  launch(on,
         {.grid = grid_for(items, block ? 1 : warps, kMost),
          .block = dim3(static_cast<unsigned>(warps * kWarpSize)),
          .shared = block ? team_memory<Acc>(order, 2) : 0},
         norm_forward_any_kernel<T>, k, order, block);
}

}  // namespace norma::norm_cuda
