#pragma once

#include <array>
#include <cstdint>

#include "norma/core/cuda/launch.cuh"
#include "norma/core/strided.h"

namespace norma {

/// A StridedLoop as a kernel takes it: where element i of each of N arrays lies.
template <int N>
struct StridedIndex {
  int dims = 0;
  int64_t count = 0;
  int64_t sizes[Shape::kMaxDims];
  int64_t strides[N][Shape::kMaxDims];

  explicit StridedIndex(const detail::StridedLoop<N>& loop)
      : dims(loop.shape.dim()), count(loop.shape.numel()) {
    for (int d = 0; d < dims; ++d) {
      sizes[d] = loop.shape[d];
      for (int a = 0; a < N; ++a) strides[a][d] = loop.strides[static_cast<size_t>(a)][d];
    }
  }

  /// Division by 32-bit numbers where the count allows: a third of the time of a 64-bit one.
  __device__ void offsets(int64_t i, int64_t (&at)[N]) const {
#pragma unroll
    for (int a = 0; a < N; ++a) at[a] = 0;
    for (int d = dims - 1; d > 0; --d) {
      int64_t index;
      if (count < (int64_t{1} << 31)) {
        const auto n = static_cast<uint32_t>(i), size = static_cast<uint32_t>(sizes[d]);
        index = n % size;
        i = n / size;
      } else {
        index = i % sizes[d];
        i /= sizes[d];
      }
#pragma unroll
      for (int a = 0; a < N; ++a) at[a] += index * strides[a][d];
    }
#pragma unroll
    for (int a = 0; a < N; ++a) at[a] += i * strides[a][0];
  }
  /// Whether array a is one dense run.
  bool is_run(int a) const { return dims == 1 && (strides[a][0] == 1 || count <= 1); }
};

template <int N, class F>
__global__ void for_each_kernel(StridedIndex<N> index, F f) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < index.count; i += step) {
    int64_t at[N];
    index.offsets(i, at);
    f(at);
  }
}

/// f(offsets), a functor for the device, for every element of the loop.
template <int N, class F>
void for_each_element(const Cuda& on, const StridedIndex<N>& index, const F& f) {
  constexpr int kThreads = 256;
  launch(on, {.grid = grid_for(index.count, kThreads, 1 << 20), .block = dim3(kThreads)},
         for_each_kernel<N, F>, index, f);
}

}  // namespace norma
