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

/// Same dtypes: bytes.
template <class B>
struct CopyOne {
  const B* source;
  B* target;
  __device__ void operator()(const int64_t (&at)[2]) const { target[at[1]] = source[at[0]]; }
};

/// Any two dtypes, by way of one that holds the source's values exactly: the same bits as
/// converting at once. Dtypes are branches that all threads take alike, since every pair of them
/// would be a kernel.
struct ConvertOne {
  const void* source;
  void* target;
  DType from, to;

  __device__ void operator()(const int64_t (&at)[2]) const {
    if (is_floating(from))
      put(at[1], get<double>(at[0]));
    else
      put(at[1], get<int64_t>(at[0]));
  }

 private:
  template <class V>
  __device__ V get(int64_t i) const {
    switch (from) {
      case float32:
        return convert<V>(static_cast<const float*>(source)[i]);
      case float64:
        return convert<V>(static_cast<const double*>(source)[i]);
      case bfloat16:
        return convert<V>(static_cast<const BFloat16*>(source)[i]);
      case float16:
        return convert<V>(static_cast<const Float16*>(source)[i]);
      case int32:
        return convert<V>(static_cast<const int32_t*>(source)[i]);
      case int64:
        return convert<V>(static_cast<const int64_t*>(source)[i]);
      default:
        return convert<V>(static_cast<const bool*>(source)[i]);
    }
  }
  template <class V>
  __device__ void put(int64_t i, V v) const {
    switch (to) {
      case float32:
        return void(static_cast<float*>(target)[i] = convert<float>(v));
      case float64:
        return void(static_cast<double*>(target)[i] = convert<double>(v));
      case bfloat16:
        return void(static_cast<BFloat16*>(target)[i] = convert<BFloat16>(v));
      case float16:
        return void(static_cast<Float16*>(target)[i] = convert<Float16>(v));
      case int32:
        return void(static_cast<int32_t*>(target)[i] = convert<int32_t>(v));
      case int64:
        return void(static_cast<int64_t*>(target)[i] = convert<int64_t>(v));
      default:
        return void(static_cast<bool*>(target)[i] = convert<bool>(v));
    }
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
  wait_for_previous_kernel();
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

void copy_elements(const Cuda& on, const StridedIndex<2>& index, const CopyArgs& k) {
  visit_bytes(k.source.dtype, [&]<class B>() {
    for_each_element(on, index, CopyOne<B>{k.source.as<B>(), k.target.as<B>()});
  });
}

/// Dense runs of two floating dtypes; false where they are not aligned.
bool convert_runs(const Cuda& on, const CopyArgs& k) {
  bool done = false;
  const int64_t n = k.source.shape.numel();
  visit_floating(k.source.dtype, [&]<class From>() {
    visit_floating(k.target.dtype, [&]<class To>() {
      if constexpr (!std::is_same_v<From, To>) {
        constexpr int kWidth = kWidthOf<From, To>;
        const auto* source = k.source.as<From>();
        auto* target = k.target.as<To>();
        done = is_aligned<kWidth>(source) && is_aligned<kWidth>(target);
        if (done)
          launch(
              on,
              {.grid = grid_for(ceil_div(n, int64_t{kWidth}), kThreads), .block = dim3(kThreads)},
              convert_run_kernel<From, To, kWidth>, source, target, n);
      }
    });
  });
  return done;
}

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
  if (k.source.dtype == k.target.dtype) return copy_elements(on, index, k);
  if (runs && is_floating(k.source.dtype) && is_floating(k.target.dtype) && convert_runs(on, k))
    return;
  for_each_element(on, index,
                   ConvertOne{k.source.data, k.target.data, k.source.dtype, k.target.dtype});
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
                .block = dim3(kThreads),
                .overlap = true},
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
