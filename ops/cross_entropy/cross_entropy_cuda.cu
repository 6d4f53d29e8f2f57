#include <algorithm>

#include "norma/core/cuda/async_copy.cuh"
#include "norma/core/cuda/fault.h"
#include "norma/core/cuda/index.cuh"
#include "norma/core/cuda/runtime.h"
#include "norma/ops/cross_entropy/kernels.h"
#include "norma/ops/softmax/rows.cuh"

namespace norma {
namespace {

constexpr int kBlock = 512;

constexpr const char* kWrongTarget =
    "cross_entropy: targets must be below {}, the number of classes, or {} to be ignored, but "
    "target "
    "{} is {}";

struct Smoothing {
  double share;  // ε
  int64_t ignore_index;
};

/// Rows of few classes, a model of characters', have packets of two: else a few lanes have all the
/// exponentials.
constexpr int kFewCols = 128, kFewWidth = 2;

/// Losses and lse: each logit is read once.
///   bytes  rows · cols · sizeof(T)
template <class T, int kThreads, bool kAligned, int kWidth>
__global__ void cross_entropy_forward_kernel(ConstRows logits, ConstVec targets, Smoothing o,
                                             Vec losses, Vec lse, detail::FaultSlot fault) {
  wait_for_previous_kernel();
  using Acc = stats_t<T>;
  constexpr bool kWarp = kThreads == kWarpSize;
  __shared__ Acc slots[kBlock / kWarpSize];
  const int64_t i = kWarp ? int64_t{blockIdx.x} * kRowsOfABlock + threadIdx.y : blockIdx.x;
  if (i >= logits.rows) return;
  const int cols = static_cast<int>(logits.cols), thread = threadIdx.x;
  const T* row = logits.template row<T>(i);
  const Acc share = static_cast<Acc>(o.share);
  OnlineSum<Acc, sizeof(T) == 2> online;
  Acc sum = 0;
  for_packets<kThreads, kAligned, kWidth>(row, cols, thread, [&](int, const auto& packet, int n) {
    online.add(packet, n);
    if (share > 0)
#pragma unroll
      for (int e = 0; e < kWidth; ++e) sum += e < n ? convert<Acc>(packet[e]) : Acc(0);
  });
  online.template meet<kThreads>(slots);
  if (share > 0) sum = row_sum<kThreads>(sum, slots);
  if (thread != 0) return;
  int64_t target = index_at(targets, i);
  const bool ignored = target == o.ignore_index;
  if (!ignored && (target < 0 || target >= cols)) {
    fault.report(cols, o.ignore_index, i, target);
    target = 0;
  }
  lse.template at<Acc>(i) = online.lse();
  losses.template at<Acc>(i) =
      ignored ? Acc(0)
              : online.lse() - (1 - share) * convert<Acc>(row[target]) - share * sum / Acc(cols);
}

/// e^(v − lse); a half type's rounding hides that of the faster exponential.
template <class T, class Acc>
__device__ __forceinline__ auto probabilities(Acc lse) {
  constexpr Acc kLog2E = 1.4426950408889634;
  return [lse, scaled = lse * kLog2E](Acc v) {
    return sizeof(T) == 2 ? exp2_fast(v * kLog2E - scaled) : exp_of(v - lse);
  };
}

/// One block: 1 / max(1, counted targets).
constexpr int kMeanThreads = 1024;
__global__ void __launch_bounds__(kMeanThreads)
    cross_entropy_share_kernel(ConstVec targets, int64_t ignore_index, Vec share) {
  wait_for_previous_kernel();
  __shared__ int slots[kMeanThreads / kWarpSize];
  int counted = 0;
  for (int64_t i = threadIdx.x; i < targets.n; i += kMeanThreads)
    counted += index_at(targets, i) != ignore_index;
  counted = block_sum<kMeanThreads>(counted, slots);
  if (threadIdx.x == 0) share.at<float>(0) = 1 / float(max(1, counted));
}

/// The forward and, over the logits, the backward kernel at once, with their bits: a row waits in
/// shared memory for its sums, and each thread asks for its packets of the block's next row as it
/// lets go of those of this one. Two blocks a multiprocessor, one sums while the other writes.
///   bytes  2 · rows · cols · sizeof(T)
template <class T>
__global__ void __launch_bounds__(kBlock, 2)
    cross_entropy_in_place_kernel(Rows logits, ConstVec targets, Vec share, Smoothing o, Vec losses,
                                  Vec lses, detail::FaultSlot fault) {
  wait_for_previous_kernel();
  using Acc = stats_t<T>;
  constexpr int kWidth = kWidest<T>, kStep = kBlock * kWidth, kParts = 4;
  extern __shared__ __align__(16) unsigned char row_memory[];
  __shared__ Acc slots[kBlock / kWarpSize];
  T* held = reinterpret_cast<T*>(row_memory);
  const int cols = static_cast<int>(logits.cols), first = static_cast<int>(threadIdx.x) * kWidth;
  const int part = ceil_div(ceil_div(cols, kStep), kParts) * kStep;  // columns of a group of copies
  const auto packets_of = [&](int p, const auto& f) {
    const int end = min(cols, (p + 1) * part);
    for (int c = p * part + first; c < end; c += kStep) f(c);
  };
  const Acc smooth = static_cast<Acc>(o.share), uniform = smooth / Acc(cols);
  const Acc mean_share = share.template at<Acc>(0);

  int64_t i = blockIdx.x;
  if (i < logits.rows) {
    const T* row = logits.template row<T>(i);
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      packets_of(p, [&](int c) { copy_16(held + c, row + c); });
      commit_copies();
    }
  }
  for (; i < logits.rows; i += gridDim.x) {
    const int64_t target = index_at(targets, i);
    const bool ignored = target == o.ignore_index;
    const bool wrong = !ignored && (target < 0 || target >= cols);
    const int at = ignored || wrong ? 0 : static_cast<int>(target);
    OnlineSum<Acc, true> online;
    Acc sum = 0;
    const auto take = [&](int c) {
      const auto packet = load<kWidth, true>(held + c);
      online.add(packet, kWidth);
      if (smooth > 0)
#pragma unroll
        for (int e = 0; e < kWidth; ++e) sum += convert<Acc>(packet[e]);
    };
    wait_for_copies<3>();
    packets_of(0, take);
    wait_for_copies<2>();
    packets_of(1, take);
    wait_for_copies<1>();
    packets_of(2, take);
    wait_for_copies<0>();
    packets_of(3, take);
    online.template meet<kBlock>(slots);
    if (smooth > 0) sum = row_sum<kBlock>(sum, slots);
    const Acc lse = online.lse();
    if (at / kWidth % kBlock == static_cast<int>(threadIdx.x)) {  // it holds the target's packet
      if (wrong) fault.report(cols, o.ignore_index, i, target);
      lses.template at<Acc>(i) = lse;
      losses.template at<Acc>(i) =
          ignored ? Acc(0) : lse - (1 - smooth) * convert<Acc>(held[at]) - smooth * sum / Acc(cols);
    }
    const auto probability = probabilities<T>(lse);
    T* row = logits.template row<T>(i);
    const bool more = i + gridDim.x < logits.rows;
    const T* next = more ? logits.template row<T>(i + gridDim.x) : row;
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      packets_of(p, [&](int c) {
        auto packet = load<kWidth, true>(held + c);
        const bool has_target = static_cast<unsigned>(target - c) < kWidth;
#pragma unroll
        for (int e = 0; e < kWidth; ++e) {
          Acc v = probability(convert<Acc>(packet[e]));
          if (has_target && c + e == target) v -= 1 - smooth;
          packet[e] = convert<T>(ignored ? Acc(0) : (v - uniform) * mean_share);
        }
        put<true>(row + c, packet, kWidth);
        if (more) copy_16(held + c, next + c);
      });
      commit_copies();
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    cross_entropy_scale_kernel(ConstVec factor, Vec gradient) {
  wait_for_previous_kernel();
  using Acc = stats_t<T>;
  constexpr int kWidth = kWidest<T>;
  const Acc by = factor.template at<Acc>(0);
  if (by == Acc(1)) return;
  T* all = gradient.template as<T>();
  const int64_t step = int64_t{gridDim.x} * kBlock * kWidth;
  for (int64_t c = (int64_t{blockIdx.x} * kBlock + threadIdx.x) * kWidth; c < gradient.n;
       c += step) {
    auto packet = load<kWidth, true>(all + c);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) packet[e] = convert<T>(convert<Acc>(packet[e]) * by);
    put<true>(all + c, packet, kWidth);
  }
}

/// One block: thread t adds the losses t, t + kMeanThreads, … up.
template <class Acc>
__global__ void __launch_bounds__(kMeanThreads)
    cross_entropy_mean_kernel(ConstVec losses, ConstVec targets, int64_t ignore_index, Vec loss,
                              Vec share) {
  wait_for_previous_kernel();
  __shared__ Acc slots[kMeanThreads / kWarpSize];
  __shared__ int count_slots[kMeanThreads / kWarpSize];
  Acc sum = 0;
  int counted = 0;
  for (int64_t i = threadIdx.x; i < losses.n; i += kMeanThreads) {
    sum += losses.template at<Acc>(i);
    counted += index_at(targets, i) != ignore_index;
  }
  sum = block_sum<kMeanThreads>(sum, slots);
  counted = block_sum<kMeanThreads>(counted, count_slots);
  if (threadIdx.x > 0) return;
  const Acc part = 1 / Acc(max(1, counted));
  share.template at<Acc>(0) = part, loss.template at<Acc>(0) = sum * part;
}

/// dlogits, which may be the logits' own memory: each is read and written by one thread.
template <class T, int kThreads, bool kAligned, int kWidth>
__global__ void cross_entropy_backward_kernel(ConstVec dlosses, ConstVec share, ConstRows logits,
                                              ConstVec targets, ConstVec lses, Smoothing o,
                                              Rows dlogits) {
  wait_for_previous_kernel();
  using Acc = stats_t<T>;
  constexpr bool kWarp = kThreads == kWarpSize;
  const int64_t i = kWarp ? int64_t{blockIdx.x} * kRowsOfABlock + threadIdx.y : blockIdx.x;
  if (i >= logits.rows) return;
  const int cols = static_cast<int>(logits.cols), thread = threadIdx.x;
  const T* row = logits.template row<T>(i);
  T* out = dlogits.template row<T>(i);
  const int64_t target = index_at(targets, i);
  const bool ignored = target == o.ignore_index;
  const Acc smooth = static_cast<Acc>(o.share), uniform = smooth / Acc(cols);
  const Acc lse = lses.template at<Acc>(i);
  const Acc scale =
      share ? dlosses.template at<Acc>(0) * share.template at<Acc>(0) : dlosses.template at<Acc>(i);
  const auto probability = probabilities<T>(lse);
  for_packets<kThreads, kAligned, kWidth>(row, cols, thread, [&](int c, auto packet, int n) {
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      Acc p = probability(convert<Acc>(packet[e]));
      if (c + e == target) p -= 1 - smooth;
      packet[e] = convert<T>(ignored ? Acc(0) : (p - uniform) * scale);
    }
    put<kAligned>(out + c, packet, n);
  });
}

bool aligned(const void* data, int64_t stride, DType dtype) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * size_of(dtype) % 16 == 0;
}

/// start<T, kThreads, kAligned, kWidth>(shape)
template <class F>
void plan(const ConstRows& logits, bool wide, const F& start) {
  visit_floating(logits.dtype, [&]<class T>() {
    const auto go = [&]<int kThreads, bool kAligned, int kWidth = kWidest<T>>() {
      const bool warp = kThreads == kWarpSize;
      start.template operator()<T, kThreads, kAligned, kWidth>(LaunchShape{
          .grid = dim3(static_cast<unsigned>(warp ? ceil_div(logits.rows, int64_t{kRowsOfABlock})
                                                  : logits.rows)),
          .block = dim3(kThreads, warp ? kRowsOfABlock : 1),
          .overlap = true});
    };
    if (logits.cols <= kFewCols)
      go.template operator()<kWarpSize, false, kFewWidth>();
    else if (logits.cols <= kWarpCols)
      wide ? go.template operator()<kWarpSize, true>() : go.template operator()<kWarpSize, false>();
    else
      wide ? go.template operator()<kBlock, true>() : go.template operator()<kBlock, false>();
  });
}

}  // namespace

void run(Cuda on, const CrossEntropyForwardArgs& k) {
  const Smoothing o{k.label_smoothing, k.ignore_index};
  const bool wide = aligned(k.logits.data, k.logits.row_stride, k.logits.dtype);
  plan(k.logits, wide,
       [&]<class T, int kThreads, bool kAligned, int kWidth>(const LaunchShape& shape) {
         launch(on, shape, cross_entropy_forward_kernel<T, kThreads, kAligned, kWidth>, k.logits,
                k.targets, o, k.losses, k.lse, detail::fault_slot(kWrongTarget));
       });
}

void run(Cuda on, const CrossEntropyInPlaceArgs& k) {
  const Smoothing o{k.label_smoothing, k.ignore_index};
  launch(on, {.grid = dim3(1), .block = dim3(kMeanThreads), .overlap = true},
         cross_entropy_share_kernel, k.targets, k.ignore_index, k.share);
  const auto blocks = std::min<int64_t>(k.logits.rows, 2 * detail::cuda_multiprocessors(on.device));
  launch(on,
         {.grid = dim3(static_cast<unsigned>(blocks)),
          .block = dim3(kBlock),
          .shared = static_cast<size_t>(k.logits.cols) * sizeof(BFloat16),
          .overlap = true},
         cross_entropy_in_place_kernel<BFloat16>, k.logits, k.targets, k.share, o, k.losses, k.lse,
         detail::fault_slot(kWrongTarget));
}

void run(Cuda on, const CrossEntropyScaleArgs& k) {
  launch(on,
         {.grid = grid_for(k.gradient.n, kBlock * kWidest<BFloat16>, 1056),
          .block = dim3(kBlock),
          .overlap = true},
         cross_entropy_scale_kernel<BFloat16>, k.factor, k.gradient);
}

void run(Cuda on, const CrossEntropyMeanArgs& k) {
  const LaunchShape shape{.grid = dim3(1), .block = dim3(kMeanThreads), .overlap = true};
  const auto kernel = k.losses.dtype == float64 ? cross_entropy_mean_kernel<double>
                                                : cross_entropy_mean_kernel<float>;
  launch(on, shape, kernel, k.losses, k.targets, k.ignore_index, k.loss, k.share);
}

void run(Cuda on, const CrossEntropyBackwardArgs& k) {
  const Smoothing o{k.label_smoothing, k.ignore_index};
  const bool wide = aligned(k.logits.data, k.logits.row_stride, k.logits.dtype) &&
                    aligned(k.dlogits.data, k.dlogits.row_stride, k.dlogits.dtype);
  plan(k.logits, wide,
       [&]<class T, int kThreads, bool kAligned, int kWidth>(const LaunchShape& shape) {
         launch(on, shape, cross_entropy_backward_kernel<T, kThreads, kAligned, kWidth>, k.dlosses,
                k.share, k.logits, k.targets, k.lse, o, k.dlogits);
       });
}

}  // namespace norma
