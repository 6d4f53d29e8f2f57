#pragma once

#include <cstdint>

#include "norma/core/cuda/numeric.cuh"

namespace norma {

/// kWidth neighbouring elements that one thread holds.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Packed {
  T v[kWidth];
  __device__ T& operator[](int i) { return v[i]; }
  __device__ const T& operator[](int i) const { return v[i]; }
  __device__ T* begin() { return v; }
  __device__ T* end() { return v + kWidth; }
  __device__ const T* begin() const { return v; }
  __device__ const T* end() const { return v + kWidth; }
};

/// Elements of T in 16 bytes, the widest access of a thread.
template <class T>
inline constexpr int kWidest = 16 / int(sizeof(T));

/// Whether p can be read kWidth elements at a time.
template <int kWidth, class T>
__host__ __device__ bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % (sizeof(T) * kWidth) == 0;
}

template <int kWidth, bool kAligned = true, class T>
__device__ __forceinline__ Packed<T, kWidth> load(const T* p) {
  if constexpr (kAligned) {
    return *reinterpret_cast<const Packed<T, kWidth>*>(p);
  } else {
    Packed<T, kWidth> r;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) r[i] = p[i];
    return r;
  }
}

template <bool kAligned = true, int kWidth, class T>
__device__ __forceinline__ void store(T* p, const Packed<T, kWidth>& r) {
  if constexpr (kAligned) {
    *reinterpret_cast<Packed<T, kWidth>*>(p) = r;
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) p[i] = r[i];
  }
}

/// The first n elements, or all of them; the others keep `rest`.
template <int kWidth, class T>
__device__ __forceinline__ Packed<T, kWidth> load_some(const T* p, int n, T rest) {
  Packed<T, kWidth> r;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) r[i] = i < n ? p[i] : rest;
  return r;
}

template <int kWidth, class T>
__device__ __forceinline__ void store_some(T* p, const Packed<T, kWidth>& r, int n) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i)
    if (i < n) p[i] = r[i];
}

}  // namespace norma
