#pragma once

#include <type_traits>

#include "norma/core/cuda/packed.cuh"
#include "norma/core/cuda/strided.cuh"
#include "norma/core/view.h"

namespace norma {

// y = f(operands…) over equally shaped strided arrays, f a functor on computed values.

/// kWidth elements of a dense run from element i, or one repeated value.
template <class T, int kWidth>
__device__ __forceinline__ Packed<T, kWidth> load_run(const T* p, bool repeats, int64_t i) {
  if (!repeats) return load<kWidth>(p + i);
  Packed<T, kWidth> r;
#pragma unroll
  for (int e = 0; e < kWidth; ++e) r[e] = *p;
  return r;
}

/// Dense runs (or repeated values) of one dtype in, a dense run out, 16 bytes a thread.
///   bytes  n · (operands · sizeof(T) + sizeof(Y));  bound: memory
template <class T, class Y, int kWidth, class F>
__global__ void __launch_bounds__(256)
    map_run_kernel(const T* __restrict__ a, bool a_repeats, const T* __restrict__ b, bool b_repeats,
                   Y* __restrict__ y, int64_t n, F f) {
  using Acc = compute_t<T>;
  const int64_t i = (int64_t{blockIdx.x} * 256 + threadIdx.x) * kWidth;
  if (i + kWidth <= n) {
    const auto u = load_run<T, kWidth>(a, a_repeats, i), v = load_run<T, kWidth>(b, b_repeats, i);
    Packed<Y, kWidth> r;
#pragma unroll
    for (int e = 0; e < kWidth; ++e) r[e] = convert<Y>(f(convert<Acc>(u[e]), convert<Acc>(v[e])));
    store(y + i, r);
  } else {
    for (int64_t e = i; e < n; ++e)
      y[e] = convert<Y>(f(convert<Acc>(a[a_repeats ? 0 : e]), convert<Acc>(b[b_repeats ? 0 : e])));
  }
}

template <class T, class Y, class F>
struct MapOne {
  const T *a, *b;
  Y* y;
  F f;
  __device__ void operator()(const int64_t (&at)[3]) const {
    using Acc = compute_t<T>;
    y[at[2]] = convert<Y>(f(convert<Acc>(a[at[0]]), convert<Acc>(b[at[1]])));
  }
};

/// A function of one operand takes it twice: the second read is the first one's cache line.
template <class T, class Y, class F>
void map(const Cuda& on, const ConstView& a, const ConstView& b, const View& y, const F& f) {
  constexpr int kWidth = 16 / int(sizeof(T) > sizeof(Y) ? sizeof(T) : sizeof(Y));
  const StridedIndex<3> index(detail::StridedLoop<3>(y.shape, {a.strides, b.strides, y.strides}));
  const auto fits = [&](int array, const auto* p) {
    return index.dims == 1 &&
           (index.strides[array][0] == 0 || (index.is_run(array) && is_aligned<kWidth>(p)));
  };
  if (fits(0, a.as<T>()) && fits(1, b.as<T>()) && index.is_run(2) && is_aligned<kWidth>(y.as<Y>()))
    launch(on, {.grid = grid_for(ceil_div(index.count, int64_t{kWidth}), 256), .block = dim3(256)},
           map_run_kernel<T, Y, kWidth, F>, a.as<T>(), index.strides[0][0] == 0, b.as<T>(),
           index.strides[1][0] == 0, y.as<Y>(), index.count, f);
  else
    for_each_element(on, index, MapOne<T, Y, F>{a.as<T>(), b.as<T>(), y.as<Y>(), f});
}

}  // namespace norma
