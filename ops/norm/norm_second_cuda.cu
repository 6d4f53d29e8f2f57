#include <algorithm>

#include "norma/ops/norm/second.cuh"

namespace norma {
namespace {

using namespace norm_cuda;

/// As on the processor: a warp or a block takes rows in turn, forms a group's seven sums and then
/// what they give. Its second look at a row finds it in the caches.
///   bytes  rows · D · (dy, h, v, of_dy, of_h)
///   bound  memory, or for half types what the sums for w read and write of the second cache
template <class Acc>
__global__ void __launch_bounds__(kAnyThreads)
    norm_second_kernel(const __grid_constant__ NormSecondArgs k, RowOrder order,
                       WeightSums<Acc> sums, int64_t workers, bool block) {
  constexpr int kWidth = kLaneWidth<Acc>;
  extern __shared__ __align__(128) unsigned char memory[];
  const Team<Acc> team{order, reinterpret_cast<Acc*>(memory), block};
  const NormOptions& o = k.options;
  const int64_t cols = k.dy.cols, size = order.n, groups = cols / size;
  const bool centred = o.kind == NormKind::layer;
  const Acc terms = o.kind == NormKind::l2 ? Acc(1) : static_cast<Acc>(size);
  const int64_t worker =
      block ? blockIdx.x
            : int64_t{blockIdx.x} * (kAnyThreads / kWarpSize) + threadIdx.x / kWarpSize;
  if (worker >= workers) return;
  for (int64_t i = worker; i < k.dy.rows; i += workers)
    for (int64_t j = 0; j < groups; ++j) {
      const int64_t first = j * size, stat = i * groups + j;
      const auto h_of = [&](int64_t c, int n, Acc(&h)[kWidth]) { read(k.h, i, first + c, n, h); };
      Stats<Acc> s{k.mean ? k.mean.at<Acc>(stat) : Acc(0),
                   k.mean_rest ? k.mean_rest.at<Acc>(stat) : Acc(0), k.rstd.at<Acc>(stat), Acc(1)};
      if (has_lost_digits(s.rstd)) s = statistics<kWidth>(team, o, h_of);
      const Acc rstd = mul(s.rstd, s.scale);

      const auto of_column = [&](const ConstVec& w, Acc absent, int64_t c, int n, Acc(&v)[kWidth]) {
        for (Acc& e : v) e = absent;
        if (w) read(w, w.n == cols ? first + c : c, n, v);
      };
      struct Vector {
        Acc x_hat[kWidth], dy[kWidth], v[kWidth], gain[kWidth], of_gain[kWidth];
        __device__ Acc g(int e) const { return mul(gain[e], dy[e]); }
        __device__ Acc p(int e) const { return mul(of_gain[e], dy[e]); }
      };
      const auto vector_at = [&](int64_t c, int n, Vector& a) {
        h_of(c, n, a.x_hat);
        for (Acc& e : a.x_hat) e = s.normalized(s.scale == 1 ? e : mul(e, s.scale));
        read(k.dy, i, first + c, n, a.dy);
        for (Acc& e : a.v) e = 0;
        if (k.v) read(k.v, i, first + c, n, a.v);
        of_column(k.w, 1, c, n, a.gain);
        if (k.w && o.zero_centered)
          for (Acc& e : a.gain) e = add(e, Acc(1));
        of_column(k.vw, 0, c, n, a.of_gain);
      };
      Acc mean[kSums];
      team.template sum<kWidth>(mean, [&](int64_t c, int n, LaneSum<Acc>(&lane)[kSums]) {
        Vector a;
        vector_at(c, n, a);
        for (int e = 0; e < kWidth; ++e) {
          if (e >= n) continue;
          const Acc g = a.g(e), p = a.p(e);
          lane[kV].term(e, a.v[e]), lane[kG].term(e, g), lane[kP].term(e, p);
          lane[kVX].product(e, a.v[e], a.x_hat[e]);
          lane[kGX].product(e, g, a.x_hat[e]);
          lane[kPX].product(e, p, a.x_hat[e]);
          lane[kVG].product(e, a.v[e], g);
        }
      });
      for (Acc& m : mean) m = m / terms;
      if (!centred) mean[kV] = mean[kG] = mean[kP] = 0;
      const Second<Acc> second(mean, rstd);

      team.template for_each<kWidth>([&](int64_t c, int n) {
        Vector a;
        vector_at(c, n, a);
        Acc jv[kWidth], out[kWidth];
        for (int e = 0; e < kWidth; ++e) jv[e] = second.through(a.v[e], a.x_hat[e], kV, kVX);
        if (k.of_h) {
          for (int e = 0; e < kWidth; ++e) out[e] = second.of_h(a.x_hat[e], a.g(e), a.p(e), jv[e]);
          write(k.of_h, i, first + c, n, out);
        }
        if (sums.count > 0) {
          const bool fresh = i == worker && (sums.n == cols || j == 0);
          Acc* to = sums.of(worker, 0) + (sums.n == cols ? first + c : c);
          for (Acc& e : out) e = 0;
          if (!fresh) read_from(static_cast<const Acc*>(to), n, out);
          for (int e = 0; e < kWidth; ++e) out[e] = fused(a.dy[e], jv[e], out[e]);
          write_to(to, n, out);
        }
        if (k.of_dy) {
          of_column(k.vb, 0, c, n, out);
          for (int e = 0; e < kWidth; ++e)
            out[e] = fused(a.gain[e], jv[e], fused(a.of_gain[e], a.x_hat[e], out[e]));
          write(k.of_dy, i, first + c, n, out);
        }
      });
    }
}

template <class Acc>
void second_any(const Cuda& on, const NormSecondArgs& k, NormBackwardArgs& as_backward,
                WeightSums<Acc>& sums) {
  const int64_t size = k.options.group == 0 ? k.dy.cols : k.options.group;
  const RowOrder order(size, kLaneWidth<Acc>);
  constexpr int kWarps = kAnyThreads / kWarpSize;
  const bool block = order.chunks > 1;
  // No more warps than chunks: a block of 8 for the 2 of 1024 columns would be idle by three
  // quarters.
  const int warps = block ? std::min(kWarps, order.chunks) : kWarps;
  const int64_t workers =
      workers_for(on, as_backward, sums, block ? 4 * kWarps / warps : 4 * kWarps);
  const DeviceScratch<Acc> scratch(on, std::max<int64_t>(1, workers * sums.worker_size()));
  sums.data = scratch.data();
  if (k.dy.rows > 0)
    launch(on,
           {.grid = grid_for(workers, block ? 1 : kWarps),
            .block = dim3(static_cast<unsigned>(warps * kWarpSize)),
            .shared = block ? team_memory<Acc>(order, 7) : 0},
           norm_second_kernel<Acc>, k, order, sums, workers, block);
  fold(on, sums, k.dy.rows > 0 ? workers : 0, as_backward);
}

/// Calls f with of_w's place as if it were a dw, whose sums and whose folding it has.
template <class Acc, class F>
void with_sums(const NormSecondArgs& k, const F& f) {
  NormBackwardArgs as_backward;
  as_backward.options = k.options, as_backward.options.precise = false;
  as_backward.dy = k.dy, as_backward.dw = k.of_w;
  WeightSums<Acc> sums(as_backward);
  f(as_backward, sums);
}

}  // namespace

void run(Cuda on, const NormSecondArgs& k) {
  if (k.rstd.dtype == float64)
    return with_sums<double>(k, [&](auto& as, auto& sums) { second_any<double>(on, k, as, sums); });
  with_sums<float>(k, [&](auto& as, auto& sums) {
    if (!second_by_rows<float>(on, k, as, sums) && !second_by_rows<BFloat16>(on, k, as, sums) &&
        !second_by_rows<Float16>(on, k, as, sums))
      second_any<float>(on, k, as, sums);
  });
}

}  // namespace norma
