#include <type_traits>

#include "norma/core/cuda/fault.h"
#include "norma/core/cuda/index.cuh"
#include "norma/core/cuda/numeric.cuh"
#include "norma/ops/index/kernels.h"
#include "norma/ops/index/segments.cuh"

namespace norma {
namespace {

constexpr int kThreads = 256;

template <class B>
__global__ void gather_kernel(ConstRows x, ConstRows index, Rows y, detail::FaultSlot fault) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= y.rows * y.cols) return;
  const int64_t row = i / y.cols, c = i % y.cols;
  int64_t at = index_at(index, row, c);
  if (at < 0 || at >= x.cols) {
    fault.report(x.cols, row, c, at);
    at = 0;
  }
  y.template row<B>(row)[c] = x.template row<B>(row)[at];
}

__global__ void require_inside_kernel(ConstRows index, int64_t size, detail::FaultSlot fault) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= index.rows * index.cols) return;
  const int64_t row = i / index.cols, c = i % index.cols;
  const int64_t at = index_at(index, row, c);
  if (at < 0 || at >= size) fault.report(size, row, c, at);
}

/// Short rows: each thread owns an element of y and looks at every source of its row.
template <class T>
__global__ void scatter_scan_kernel(ConstRows src, ConstRows index, Rows y) {
  using Acc = compute_t<T>;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= y.rows * y.cols) return;
  const int64_t row = i / y.cols, c = i % y.cols;
  const T* from = src.template row<T>(row);
  Acc sum = 0;
  for (int64_t j = 0; j < src.cols; ++j)
    if (index_at(index, row, j) == c) sum += convert<Acc>(from[j]);
  y.template row<T>(row)[c] = convert<T>(sum);
}

/// Long rows: places sorted by the element of y that they add to.
__global__ void scatter_keys_kernel(ConstRows index, int64_t cols, uint64_t* keys,
                                    int32_t* places) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= index.rows * index.cols) return;
  const int64_t row = i / index.cols, at = index_at(index, row, i % index.cols);
  keys[i] = static_cast<uint64_t>(row * cols + (at < 0 || at >= cols ? 0 : at));
  places[i] = static_cast<int32_t>(i);
}
template <class T>
__global__ void scatter_runs_kernel(const uint64_t* __restrict__ keys,
                                    const int32_t* __restrict__ places, int64_t n, ConstRows src,
                                    Rows y) {
  using Acc = compute_t<T>;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n || (i > 0 && keys[i - 1] == keys[i])) return;
  Acc sum = 0;
  for (int64_t j = i; j < n && keys[j] == keys[i]; ++j)
    sum += convert<Acc>(src.template row<T>(places[j] / src.cols)[places[j] % src.cols]);
  const auto key = static_cast<int64_t>(keys[i]);
  y.template row<T>(key / y.cols)[key % y.cols] = convert<T>(sum);
}

/// Ascending like the values, NaN above all.
template <class T>
__device__ uint64_t order_of(T value) {
  if constexpr (is_floating(dtype_of<T>)) {
    const auto v = convert<compute_t<T>>(value);
    if (v != v) return ~uint64_t{0};
    const double d = v == 0 ? 0.0 : static_cast<double>(v);  // both zeros alike
    const auto bits = static_cast<uint64_t>(__double_as_longlong(d));
    return bits >> 63 ? ~bits : bits | uint64_t{1} << 63;
  } else {
    return static_cast<uint64_t>(static_cast<int64_t>(value)) ^ uint64_t { 1 } << 63;
  }
}

/// One block a row; the j-th round finds the largest below the last one.
template <class T>
__global__ void topk_rounds_kernel(ConstRows x, Rows indices) {
  __shared__ uint64_t orders[kThreads / kWarpSize];
  __shared__ int64_t places[kThreads / kWarpSize];
  const T* row = x.template row<T>(blockIdx.x);
  uint64_t last_order = 0;
  int64_t last_place = -1;  // before the first round: nothing is excluded
  for (int64_t j = 0; j < indices.cols; ++j) {
    uint64_t best = 0;
    int64_t place = INT64_MAX;
    const auto offer = [&](uint64_t order, int64_t at) {
      if (at == INT64_MAX) return;
      if (place == INT64_MAX || order > best || (order == best && at < place))
        best = order, place = at;
    };
    for (int64_t c = threadIdx.x; c < x.cols; c += kThreads) {
      const uint64_t order = order_of(row[c]);
      const bool taken =
          last_place >= 0 && (order > last_order || (order == last_order && c <= last_place));
      if (!taken) offer(order, c);
    }
#pragma unroll
    for (int step = kWarpSize / 2; step > 0; step /= 2) {
      const uint64_t order = __shfl_xor_sync(0xffffffffu, best, step);
      offer(order, __shfl_xor_sync(0xffffffffu, place, step));
    }
    __syncthreads();
    if (threadIdx.x % kWarpSize == 0)
      orders[threadIdx.x / kWarpSize] = best, places[threadIdx.x / kWarpSize] = place;
    __syncthreads();
    for (int w = 0; w < kThreads / kWarpSize; ++w) offer(orders[w], places[w]);
    last_order = best, last_place = place;
    if (threadIdx.x == 0) indices.template row<int64_t>(blockIdx.x)[j] = place;
  }
}

/// All places by falling value; then, of those in that order, by row.
template <class T>
__global__ void topk_keys_kernel(ConstRows x, uint64_t* keys, int32_t* places) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= x.rows * x.cols) return;
  keys[i] = ~order_of(x.template row<T>(i / x.cols)[i % x.cols]);
  places[i] = static_cast<int32_t>(i);
}
__global__ void topk_rows_kernel(const int32_t* __restrict__ sorted, int64_t n, int64_t cols,
                                 uint64_t* keys, int32_t* places) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  keys[i] = static_cast<uint64_t>(sorted[i] / cols);
  places[i] = sorted[i];
}
__global__ void topk_copy_kernel(const int32_t* __restrict__ places, int64_t cols, Rows indices) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= indices.rows * indices.cols) return;
  const int64_t row = i / indices.cols, c = i % indices.cols;
  indices.template row<int64_t>(row)[c] = places[row * cols + c] % cols;
}

LaunchShape elementwise(int64_t n) {
  return {.grid = grid_for(n, kThreads), .block = dim3(kThreads)};
}

constexpr int64_t kScanSources = 2048, kRounds = 64;

}  // namespace

void run(Cuda on, const GatherArgs& k) {
  visit_bytes(k.x.dtype, [&]<class B>() {
    launch(on, elementwise(k.y.rows * k.y.cols), gather_kernel<B>, k.x, k.index, k.y,
           detail::fault_slot("gather: index must be below {}, but in row {} element {} is {}"));
  });
}

void run(Cuda on, const ScatterArgs& k) {
  const int64_t n = k.src.rows * k.src.cols;
  launch(on, elementwise(n), require_inside_kernel, k.index, k.y.cols,
         detail::fault_slot("scatter: index must be below {}, but in row {} element {} is {}"));
  visit_all(k.src.dtype, [&]<class T>() {
    if (k.src.cols <= kScanSources) {
      launch(on, elementwise(k.y.rows * k.y.cols), scatter_scan_kernel<T>, k.src, k.index, k.y);
      return;
    }
    detail::check(
        cudaMemsetAsync(k.y.data, 0, static_cast<size_t>(k.y.rows * k.y.cols * size_of(k.y.dtype)),
                        detail::stream_of(on)),
        "fill with zeros");
    if (k.y.cols == 0) return;
    const auto most = static_cast<uint64_t>(k.y.rows * k.y.cols - 1);
    const auto sorted = sort_places<uint64_t>(
        on, n, bits_of(most), current_device(), [&](uint64_t* keys, int32_t* places) {
          launch(on, elementwise(n), scatter_keys_kernel, k.index, k.y.cols, keys, places);
        });
    launch(on, elementwise(n), scatter_runs_kernel<T>, sorted.key(), sorted.place(), n, k.src, k.y);
  });
}

void run(Cuda on, const TopKArgs& k) {
  const int64_t n = k.x.rows * k.x.cols;
  if (n == 0 || k.indices.cols == 0) return;
  const bool rounds = k.indices.cols <= kRounds;
  const Device device = current_device();
  Sorted<uint64_t> falling;
  visit_all(k.x.dtype, [&]<class T>() {
    if (rounds)
      launch(on, {.grid = dim3(static_cast<unsigned>(k.x.rows)), .block = dim3(kThreads)},
             topk_rounds_kernel<T>, k.x, k.indices);
    else
      falling = sort_places<uint64_t>(on, n, 64, device, [&](uint64_t* keys, int32_t* places) {
        launch(on, elementwise(n), topk_keys_kernel<T>, k.x, keys, places);
      });
  });
  if (rounds) return;
  // Sorting is stable: within a row the order stays.
  const auto by_row = sort_places<uint64_t>(on, n, bits_of(static_cast<uint64_t>(k.x.rows - 1)),
                                            device, [&](uint64_t* keys, int32_t* places) {
                                              launch(on, elementwise(n), topk_rows_kernel,
                                                     falling.place(), n, k.x.cols, keys, places);
                                            });
  launch(on, elementwise(k.indices.rows * k.indices.cols), topk_copy_kernel, by_row.place(),
         k.x.cols, k.indices);
}

}  // namespace norma
