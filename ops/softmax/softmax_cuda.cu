#include "norma/ops/softmax/kernels.h"
#include "norma/ops/softmax/rows.cuh"

namespace norma {
namespace {

constexpr int kBlock = 512;

/// softmax, log_softmax, logsumexp: the row is read twice, the second time out of a cache.
template <class T, int kThreads, bool kAligned>
__global__ void softmax_forward_kernel(SoftmaxFunction function, ConstRows x, Rows y) {
  using Acc = stats_t<T>;
  using enum SoftmaxFunction;
  constexpr bool kWarp = kThreads == kWarpSize;
  __shared__ Acc slots[kBlock / kWarpSize];
  const int64_t i = kWarp ? int64_t{blockIdx.x} * kRowsOfABlock + threadIdx.y : blockIdx.x;
  if (i >= x.rows) return;
  const int cols = static_cast<int>(x.cols), thread = threadIdx.x;
  const T* row = x.template row<T>(i);
  T* out = y.template row<T>(i);
  OnlineSum<Acc> online;
  for_packets<kThreads, kAligned>(row, cols, thread,
                                  [&](int, const auto& packet, int n) { online.add(packet, n); });
  online.template meet<kThreads>(slots);
  if (function == logsumexp) {
    if (thread == 0) out[0] = convert<T>(online.lse());
    return;
  }
  const Acc scale = 1 / online.sum, lse = online.lse(), shift = online.most;
  for_packets<kThreads, kAligned>(row, cols, thread, [&](int c, const auto& packet, int n) {
    auto result = packet;
#pragma unroll
    for (int e = 0; e < kWidest<T>; ++e) {
      const Acc v = convert<Acc>(packet[e]);
      result[e] = convert<T>(function == softmax ? exp_of(v - shift) * scale : v - lse);
    }
    put<kAligned>(out + c, result, n);
  });
}

/// y (dy − Σ y dy) or dy − e^y Σ dy
template <class T, int kThreads, bool kAligned>
__global__ void softmax_backward_kernel(SoftmaxFunction function, ConstRows dy, ConstRows y,
                                        Rows dx) {
  using Acc = stats_t<T>;
  using enum SoftmaxFunction;
  constexpr bool kWarp = kThreads == kWarpSize;
  constexpr int kWidth = kWidest<T>;
  __shared__ Acc slots[kBlock / kWarpSize];
  const int64_t i = kWarp ? int64_t{blockIdx.x} * kRowsOfABlock + threadIdx.y : blockIdx.x;
  if (i >= dy.rows) return;
  const int cols = static_cast<int>(dy.cols), thread = threadIdx.x;
  const T *d = dy.template row<T>(i), *p = y.template row<T>(i);
  T* out = dx.template row<T>(i);
  const auto probabilities = [&](int c, int n) {
    return n == kWidth ? load<kWidth, kAligned>(p + c) : load_some<kWidth>(p + c, n, T{});
  };
  Acc sum = 0;
  for_packets<kThreads, kAligned>(d, cols, thread, [&](int c, const auto& packet, int n) {
    const auto b = probabilities(c, n);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      const Acc v = convert<Acc>(packet[e]);
      sum += e >= n ? Acc(0) : function == softmax_backward ? v * convert<Acc>(b[e]) : v;
    }
  });
  sum = row_sum<kThreads>(sum, slots);
  for_packets<kThreads, kAligned>(d, cols, thread, [&](int c, const auto& packet, int n) {
    const auto b = probabilities(c, n);
    auto result = packet;
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      const Acc v = convert<Acc>(packet[e]), q = convert<Acc>(b[e]);
      result[e] = convert<T>(function == softmax_backward ? q * (v - sum) : v - exp_of(q) * sum);
    }
    put<kAligned>(out + c, result, n);
  });
}

template <class T>
bool aligned(const T& rows) {
  const auto bytes = size_of(rows.dtype);
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && rows.row_stride * bytes % 16 == 0;
}

}  // namespace

void run(Cuda on, const SoftmaxArgs& k) {
  using enum SoftmaxFunction;
  if (k.a.rows == 0 || k.y.cols == 0) return;
  const bool backward = k.function == softmax_backward || k.function == log_softmax_backward;
  const bool wide =
      aligned(k.a) && (k.function == logsumexp || aligned(k.y)) && (!backward || aligned(k.b));
  visit_floating(k.a.dtype, [&]<class T>() {
    const auto start = [&]<int kThreads, bool kAligned>() {
      const bool warp = kThreads == kWarpSize;
      const LaunchShape shape{.grid = dim3(static_cast<unsigned>(
                                  warp ? ceil_div(k.a.rows, int64_t{kRowsOfABlock}) : k.a.rows)),
                              .block = dim3(kThreads, warp ? kRowsOfABlock : 1)};
      if (backward)
        launch(on, shape, softmax_backward_kernel<T, kThreads, kAligned>, k.function, k.a, k.b,
               k.y);
      else
        launch(on, shape, softmax_forward_kernel<T, kThreads, kAligned>, k.function, k.a, k.y);
    };
    if (k.a.cols <= kWarpCols)
      wide ? start.template operator()<kWarpSize, true>()
           : start.template operator()<kWarpSize, false>();
    else
      wide ? start.template operator()<kBlock, true>() : start.template operator()<kBlock, false>();
  });
}

}  // namespace norma
