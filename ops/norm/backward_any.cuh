#pragma once

#include "norma/core/cuda/runtime.h"
#include "norma/ops/norm/forward_any.cuh"
#include "norma/ops/norm/plans.h"
#include "norma/ops/norm/weight_sums.cuh"

namespace norma::norm_cuda {

/// Elements c … c + n − 1 of a vector of any dtype. Out of line: there are four, and many callers.
template <class Acc, int kWidth>
__device__ __noinline__ Packed<Acc, kWidth> read_any(const void* data, DType dtype, int64_t c,
                                                     int n) {
  ConstVec t;
  t.data = data, t.dtype = dtype;
  Packed<Acc, kWidth> r;
  read(t, c, n, r.v);
  return r;
}

template <class T>
__device__ __noinline__ Gate<stats_t<T>> any_gate_of(const NormOptions& o, stats_t<T> z) {
  return gate_of<sizeof(T) == 2>(o, z);
}

/// Every member and every row: a block takes rows in turn, reads each group twice, and adds to its
/// own sums for the weights in the second cache.
template <class T>
__global__ void __launch_bounds__(kAnyThreads)
    norm_backward_any_kernel(const __grid_constant__ NormBackwardArgs k, RowOrder order,
                             WeightSums<stats_t<T>> sums, int64_t workers) {
  using Acc = stats_t<T>;
  constexpr int kWidth = kLaneWidth<T>;
  extern __shared__ __align__(128) unsigned char memory[];
  const Team<Acc> team{order, reinterpret_cast<Acc*>(memory)};
  const NormOptions& o = k.options;
  const int64_t cols = k.dy.cols, size = order.n, groups = cols / size;
  const bool gate_first = o.gate == GateOrder::gate_then_norm;
  const bool gate_last = o.gate == GateOrder::norm_then_gate;
  const int64_t worker = blockIdx.x;
  const auto read_vec = [](const ConstVec& t, int64_t c, int n, Acc(&v)[kWidth]) {
    const auto r = read_any<Acc, kWidth>(t.data, t.dtype, c, n);
    for (int e = 0; e < kWidth; ++e) v[e] = r[e];
  };
  const auto read_row = [](const ConstRows& t, int64_t row, int64_t c, int n, Acc(&v)[kWidth]) {
    const auto r = read_any<Acc, kWidth>(t.data, t.dtype, row * t.row_stride + c, n);
    for (int e = 0; e < kWidth; ++e) v[e] = r[e];
  };
  for (int64_t i = worker; i < k.dy.rows; i += workers) {
    Acc drow = 0;
    for (int64_t j = 0; j < groups; ++j) {
      const int64_t first = j * size, stat = i * groups + j;
      const auto h_of = [&](int64_t c, int n, Acc(&h)[kWidth]) {
        read_either<T>(k.h, i, first + c, n, h);
      };
      const auto u_of = [&](int64_t c, int n, Acc(&u)[kWidth]) {
        h_of(c, n, u);
        if (!gate_first) return;
        Acc z[kWidth];
        read_from(k.z.row<T>(i) + first + c, n, z);
        for (int e = 0; e < kWidth; ++e) u[e] = mul(u[e], any_gate_of<T>(o, z[e]).value);
      };
      Stats<Acc> s{k.mean ? k.mean.at<Acc>(stat) : Acc(0),
                   k.mean_rest ? k.mean_rest.at<Acc>(stat) : Acc(0), k.rstd.at<Acc>(stat), Acc(1)};
      // A row so large or small that its own rstd lost digits is scaled as the forward did it.
      constexpr Acc kLeast = std::is_same_v<Acc, double> ? Acc(0x1p-1022) : Acc(0x1p-126f);
      if (!k.x_hat && !(s.rstd >= kLeast && s.rstd <= largest<Acc>()))
        s = statistics<kWidth>(team, o, u_of);

      // x̂ and g = w ⊙ dn + w2 ⊙ dy2 of a vector, and what else is needed on the way.
      struct Vector {
        Acc x_hat[kWidth], g[kWidth], dn[kWidth], dy[kWidth];
        Acc gain[kWidth];  // in the end n, where dz needs that
      };
      const auto vector_at = [&](int64_t c, int n, Vector& v, bool adds) {
        if (k.x_hat) {
          read_from(k.x_hat.row<T>(i) + first + c, n, v.x_hat);
        } else {
          u_of(c, n, v.x_hat);
          for (Acc& e : v.x_hat) e = s.normalized(s.scale == 1 ? e : mul(e, s.scale));
        }
        Acc multiplied[kWidth];
        for (int e = 0; e < kWidth; ++e)
          multiplied[e] =
              o.casting == Casting::rounded ? rounded_to(k.x_dtype, v.x_hat[e]) : v.x_hat[e];
        read_row(k.dy, i, first + c, n, v.dy);
        for (int e = 0; e < kWidth; ++e) v.dn[e] = v.dy[e];
        if (gate_last) {
          Acc z[kWidth];
          read_from(k.z.row<T>(i) + first + c, n, z);
          for (int e = 0; e < kWidth; ++e) v.dn[e] = mul(v.dy[e], any_gate_of<T>(o, z[e]).value);
        }
        const auto gain_of = [&](const ConstVec& w, Acc(&gain)[kWidth]) {
          for (Acc& e : gain) e = 1;
          if (!w) return;
          read_vec(w, w.n == cols ? first + c : c, n, gain);
          if (o.zero_centered)
            for (Acc& e : gain) e = add(e, Acc(1));
        };
        gain_of(k.w, v.gain);
        for (int e = 0; e < kWidth; ++e) v.g[e] = mul(v.gain[e], v.dn[e]);
        const auto accumulate = [&](int which, const Acc(&d)[kWidth], bool times) {
          if (!adds || sums.place[which] < 0) return;
          Acc* to = sums.of(worker, which) + (sums.n == cols ? first + c : c);
          Acc sum[kWidth], lost[kWidth];
          read_from(static_cast<const Acc*>(to), n, sum);
          if (sums.kept == 2) {
            read_from(static_cast<const Acc*>(to + sums.pitch), n, lost);
            for (int e = 0; e < kWidth; ++e)
              add_precisely(sum[e], lost[e], times ? mul(d[e], multiplied[e]) : d[e]);
            write_to(to + sums.pitch, n, lost);
          } else {
            for (int e = 0; e < kWidth; ++e)
              sum[e] = times ? fused(d[e], multiplied[e], sum[e]) : add(sum[e], d[e]);
          }
          write_to(to, n, sum);
        };
        accumulate(0, v.dn, true);
        accumulate(1, v.dn, false);
        if (k.dy2) {
          Acc dy2[kWidth], gain[kWidth];
          read_row(k.dy2, i, first + c, n, dy2);
          gain_of(k.w2, gain);
          for (int e = 0; e < kWidth; ++e) v.g[e] = fused(gain[e], dy2[e], v.g[e]);
          accumulate(2, dy2, true);
          accumulate(3, dy2, false);
        }
        if (!gate_last || adds) return;
        Acc b[kWidth];
        if (k.b) read_vec(k.b, k.b.n == cols ? first + c : c, n, b);
        for (int e = 0; e < kWidth; ++e)
          v.gain[e] = k.b ? fused(v.gain[e], multiplied[e], b[e]) : mul(v.gain[e], multiplied[e]);
      };

      Acc total[3];
      team.template sum<kWidth>(total, [&](int64_t c, int n, LaneSum<Acc>(&lane)[3]) {
        Vector v;
        vector_at(c, n, v, true);
        for (int e = 0; e < kWidth; ++e) {
          if (e >= n) continue;
          lane[0].product(e, v.g[e], v.x_hat[e]);
          lane[1].term(e, v.g[e]);
          lane[2].product(e, v.g[e], v.g[e]);
        }
      });
      const Acc inverse = o.kind == NormKind::l2 ? Acc(1) : 1 / static_cast<Acc>(size);
      const Acc mean_gx = mul(total[0], inverse);
      const Acc mean_g = o.kind == NormKind::layer ? mul(total[1], inverse) : Acc(0);
      const Acc g_norm = sqrt(total[2]);

      const Acc along = mul(s.rstd, mean_gx), level = mul(s.rstd, mean_g);
      Acc after[2];
      team.template sum<kWidth>(after, [&](int64_t c, int n, LaneSum<Acc>(&lane)[2]) {
        Vector v;
        vector_at(c, n, v, false);
        Acc du[kWidth], other[kWidth];
        for (int e = 0; e < kWidth; ++e) {
          du[e] = fused(-v.x_hat[e], along, fused(v.g[e], s.rstd, -level));
          if (s.scale != 1) du[e] = mul(du[e], s.scale);
          if (e < n) lane[0].product(e, du[e], du[e]);
        }
        if (k.z) {
          Acc h[kWidth], dz[kWidth];
          if (gate_first) h_of(c, n, h);
          read_from(k.z.row<T>(i) + first + c, n, other);
          for (int e = 0; e < kWidth; ++e) {
            const Gate<Acc> gate = any_gate_of<T>(o, other[e]);
            dz[e] = mul(gate_first ? mul(du[e], h[e]) : mul(v.dy[e], v.gain[e]), gate.slope);
            if (gate_first) du[e] = mul(du[e], gate.value);
          }
          if (k.dz) write_to(k.dz.row<T>(i) + first + c, n, dz);
        }
        if (k.dh) {
          read_either<T>(k.dh, i, first + c, n, other);
          for (int e = 0; e < kWidth; ++e) du[e] = add(du[e], other[e]);
        }
        if (k.dresidual) write_either<T>(k.dresidual, i, first + c, n, du);
        bool dropped[kWidth] = {};
        if (o.dropout > 0) {
          draw_mask(o, i * cols + first + c, other);
          for (int e = 0; e < kWidth; ++e) {
            dropped[e] = other[e] == 0;
            du[e] = dropped[e] ? Acc(0) : mul(du[e], other[e]);
          }
        }
        if (k.drow_scale) {
          read_from(k.x.row<T>(i) + first + c, n, other);
          for (int e = 0; e < kWidth; ++e)  // a dropped x takes no part, be it a NaN
            if (e < n && !dropped[e]) lane[1].product(e, du[e], other[e]);
        }
        if (k.row_scale) {
          const Acc scale = value_at<Acc>(k.row_scale, i);
          for (Acc& e : du) e = mul(e, scale);
        }
        if (k.dx) write_to(k.dx.row<T>(i) + first + c, n, du);
      });
      drow = add(drow, after[1]);
      if (team.lane() == 0 && team.warp() == 0) {
        if (k.mean_gx) k.mean_gx.at<Acc>(stat) = mean_gx;
        if (k.g_norm) k.g_norm.at<Acc>(stat) = g_norm;
        if (k.du_norm) k.du_norm.at<Acc>(stat) = sqrt(after[0]);
      }
    }
    if (k.drow_scale && team.lane() == 0 && team.warp() == 0) set_value(k.drow_scale, i, drow);
  }
}

/// How many workers keep sums of their own: a function of the sizes alone where portable.
template <class Acc>
int64_t workers_for(const Cuda& on, const NormBackwardArgs& k, const WeightSums<Acc>& sums,
                    int64_t most) {
  constexpr int64_t kAnyMultiprocessors = 128, kBytes = 64 << 20;
  const int64_t count = k.options.portable
                            ? kAnyMultiprocessors
                            : as_pretended(on, detail::cuda_multiprocessors(on.device));
  int64_t workers = count * most;
  if (sums.count > 0) {
    const int64_t fit = kBytes / (sums.worker_size() * int64_t{sizeof(Acc)});
    workers = std::max<int64_t>(count, std::min(workers, fit));
  }
  return std::max<int64_t>(1, std::min(workers, k.dy.rows));
}

template <class T>
void backward_any(const Cuda& on, const NormBackwardArgs& k) {
  using Acc = stats_t<T>;
  const int64_t size = k.options.group == 0 ? k.dy.cols : k.options.group;
  const RowOrder order(size, kLaneWidth<T>);
  WeightSums<Acc> sums(k);
  const int warps = std::min(order.chunks, kAnyThreads / kWarpSize);
  const int64_t workers = workers_for(on, k, sums, 32 / warps);
  const DeviceScratch<Acc> scratch(on, std::max<int64_t>(1, workers * sums.worker_size()));
  sums.data = scratch.data();
  if (sums.count > 0)
    detail::check(cudaMemsetAsync(sums.data, 0,
                                  static_cast<size_t>(workers * sums.worker_size()) * sizeof(Acc),
                                  detail::stream_of(on)),
                  "clear the sums of norm_backward");
  if (k.dy.rows > 0)
    launch(on,
           {.grid = grid_for(workers, 1),
            .block = dim3(static_cast<unsigned>(warps * kWarpSize)),
            .shared = team_memory<Acc>(order, 3)},
           norm_backward_any_kernel<T>, k, order, sums, workers);
  fold(on, sums, workers, k);
}

}  // namespace norma::norm_cuda
