#include <type_traits>

#include "norma/core/copy.h"
#include "norma/core/cuda/packed.cuh"
#include "norma/core/cuda/strided.cuh"

namespace norma {
namespace {

constexpr int kThreads = 256;

template <class T>
struct FillOne {
  T* target;
  T value;
  __device__ void operator()(const int64_t (&at)[1]) const { target[at[0]] = value; }
};

template <class From, class To>
struct CopyOne {
  const From* source;
  To* target;
  __device__ void operator()(const int64_t (&at)[2]) const {
    target[at[1]] = convert<To>(source[at[0]]);
  }
};

struct CopyWide {
  const uint4* source;
  uint4* target;
  __device__ void operator()(const int64_t (&at)[2]) const { target[at[1]] = source[at[0]]; }
};

template <class T>
struct AddOne {
  const T* source;
  T* target;
  __device__ void operator()(const int64_t (&at)[2]) const {
    T& t = target[at[1]];
    if constexpr (std::is_same_v<T, bool>)
      t = t || source[at[0]];
    else
      t = convert<T>(convert<compute_t<T>>(t) + convert<compute_t<T>>(source[at[0]]));
  }
};

/// Two dense runs, kWidth elements a thread.
///   bytes  n · (sizeof(From) + sizeof(To))
template <class From, class To, int kWidth>
__global__ void __launch_bounds__(kThreads)
    convert_run_kernel(const From* __restrict__ source, To* __restrict__ target, int64_t n) {
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
  if (i + kWidth <= n) {
    const auto from = load<kWidth>(source + i);
    Packed<To, kWidth> to;
#pragma unroll
    for (int e = 0; e < kWidth; ++e) to[e] = convert<To>(from[e]);
    store(target + i, to);
  } else {
    for (int64_t e = i; e < n; ++e) target[e] = convert<To>(source[e]);
  }
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    add_run_kernel(const T* __restrict__ source, T* __restrict__ target, int64_t n) {
  using Acc = compute_t<T>;
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
  if (i + kWidth <= n) {
    const auto from = load<kWidth>(source + i);
    auto to = load<kWidth>(target + i);
#pragma unroll
    for (int e = 0; e < kWidth; ++e)
      to[e] = convert<T>(convert<Acc>(to[e]) + convert<Acc>(from[e]));
    store(target + i, to);
  } else {
    for (int64_t e = i; e < n; ++e)
      target[e] = convert<T>(convert<Acc>(target[e]) + convert<Acc>(source[e]));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    ramp_kernel(T* target, int64_t n, double first, double step) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < n) target[i] = convert<T>(fma(step, static_cast<double>(i), first));
}

/// Makes the index count units of 16 bytes, where rows and all strides of both arrays allow it.
bool in_wide_units(StridedIndex<2>& index, int64_t element_size, const void* source,
                   const void* target) {
  const int64_t width = 16 / element_size;
  const int last = index.dims - 1;
  bool fits = index.sizes[last] % width == 0 && reinterpret_cast<uintptr_t>(source) % 16 == 0 &&
              reinterpret_cast<uintptr_t>(target) % 16 == 0;
  for (const auto& strides : index.strides) {
    fits = fits && strides[last] == 1;
    for (int d = 0; d < last; ++d) fits = fits && strides[d] % width == 0;
  }
  if (!fits) return false;
  for (auto& strides : index.strides)
    for (int d = 0; d < last; ++d) strides[d] /= width;
  index.sizes[last] /= width;
  index.count /= width;
  return true;
}

/// Elements a thread: 16 bytes of the wider type.
template <class From, class To>
constexpr int kWidthOf = 16 / int(sizeof(From) > sizeof(To) ? sizeof(From) : sizeof(To));

}  // namespace

void run(Cuda on, const FillArgs& k) {
  const StridedIndex<1> index(detail::StridedLoop<1>(k.target.shape, {k.target.strides}));
  if (k.value == 0 && index.is_run(0)) {
    detail::check(cudaMemsetAsync(k.target.data, 0,
                                  static_cast<size_t>(index.count * size_of(k.target.dtype)),
                                  detail::stream_of(on)),
                  "fill with zeros");
    return;
  }
  visit_all(k.target.dtype, [&]<class T>() {
    T value;
    if constexpr (std::is_same_v<T, bool>)
      value = k.value != 0;
    else if constexpr (std::is_same_v<T, BFloat16> || std::is_same_v<T, Float16>)
      value = T(static_cast<float>(k.value));
    else
      value = static_cast<T>(k.value);
    for_each_element(on, index, FillOne<T>{k.target.as<T>(), value});
  });
}

void run(Cuda on, const CopyArgs& k) {
  const StridedIndex<2> index(
      detail::StridedLoop<2>(k.source.shape, {k.source.strides, k.target.strides}));
  const bool runs = index.is_run(0) && index.is_run(1);
  if (runs && k.source.dtype == k.target.dtype) {
    if (index.count == 0) return;
    detail::check(cudaMemcpyAsync(k.target.data, k.source.data,
                                  static_cast<size_t>(index.count * size_of(k.source.dtype)),
                                  cudaMemcpyDeviceToDevice, detail::stream_of(on)),
                  "copy on the device");
    return;
  }
  if (StridedIndex<2> wide = index;
      k.source.dtype == k.target.dtype && index.count > 0 &&
      in_wide_units(wide, size_of(k.source.dtype), k.source.data, k.target.data)) {
    for_each_element(on, wide, CopyWide{k.source.as<uint4>(), k.target.as<uint4>()});
    return;
  }
  visit_all(k.source.dtype, [&]<class From>() {
    visit_all(k.target.dtype, [&]<class To>() {
      constexpr int kWidth = kWidthOf<From, To>;
      const auto* source = k.source.as<From>();
      auto* target = k.target.as<To>();
      if (runs && is_aligned<kWidth>(source) && is_aligned<kWidth>(target))
        launch(on,
               {.grid = grid_for(ceil_div(index.count, int64_t{kWidth}), kThreads),
                .block = dim3(kThreads)},
               convert_run_kernel<From, To, kWidth>, source, target, index.count);
      else
        for_each_element(on, index, CopyOne<From, To>{source, target});
    });
  });
}

void run(Cuda on, const AddIntoArgs& k) {
  const StridedIndex<2> index(
      detail::StridedLoop<2>(k.source.shape, {k.source.strides, k.target.strides}));
  visit_all(k.target.dtype, [&]<class T>() {
    const auto* source = k.source.as<T>();
    auto* target = k.target.as<T>();
    if constexpr (!std::is_same_v<T, bool>) {
      constexpr int kWidth = kWidest<T>;
      if (index.is_run(0) && index.is_run(1) && is_aligned<kWidth>(source) &&
          is_aligned<kWidth>(target)) {
        launch(on,
               {.grid = grid_for(ceil_div(index.count, int64_t{kWidth}), kThreads),
                .block = dim3(kThreads)},
               add_run_kernel<T, kWidth>, source, target, index.count);
        return;
      }
    }
    for_each_element(on, index, AddOne<T>{source, target});
  });
}

void run(Cuda on, const RampArgs& k) {
  const int64_t n = k.target.shape.numel();
  visit_all(k.target.dtype, [&]<class T>() {
    launch(on, {.grid = grid_for(n, kThreads), .block = dim3(kThreads)}, ramp_kernel<T>,
           k.target.as<T>(), n, k.first, k.step);
  });
}

}  // namespace norma
