#pragma once

#include <cstdint>
#include <type_traits>

#include "norma/core/dtype.h"

namespace norma {

/// kWidth neighbouring elements as the registers that a load fills. Half types are taken out of
/// them where they are used: taken out at the load, each load would be waited for at once.
template <class T, int kWidth>
struct Words {
  static constexpr int kBytes = kWidth * int(sizeof(T)), kCount = (kBytes + 3) / 4;
  uint32_t w[kCount];

  __device__ __forceinline__ static Words zero() {
    Words words;
#pragma unroll
    for (int i = 0; i < kCount; ++i) words.w[i] = 0;
    return words;
  }
  /// From an address that is a multiple of kBytes or of 16.
  __device__ __forceinline__ static Words load(const T* from) {
    Words words;
    if constexpr (kBytes % 16 == 0) {
#pragma unroll
      for (int i = 0; i < kCount; i += 4) {
        const uint4 v = reinterpret_cast<const uint4*>(from)[i / 4];
        words.w[i] = v.x, words.w[i + 1] = v.y, words.w[i + 2] = v.z, words.w[i + 3] = v.w;
      }
    } else if constexpr (kBytes == 8) {
      const uint2 v = *reinterpret_cast<const uint2*>(from);
      words.w[0] = v.x, words.w[1] = v.y;
    } else if constexpr (kBytes == 4) {
      words.w[0] = *reinterpret_cast<const uint32_t*>(from);
    } else {
      static_assert(kBytes == 2);
      words.w[0] = *reinterpret_cast<const uint16_t*>(from);
    }
    return words;
  }
  /// To an address of which the same holds.
  __device__ __forceinline__ void store(T* to) const {
    if constexpr (kBytes % 16 == 0) {
#pragma unroll
      for (int i = 0; i < kCount; i += 4)
        reinterpret_cast<uint4*>(to)[i / 4] = make_uint4(w[i], w[i + 1], w[i + 2], w[i + 3]);
    } else if constexpr (kBytes == 8) {
      *reinterpret_cast<uint2*>(to) = make_uint2(w[0], w[1]);
    } else if constexpr (kBytes == 4) {
      *reinterpret_cast<uint32_t*>(to) = w[0];
    } else {
      static_assert(kBytes == 2);
      *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(w[0]);
    }
  }
  /// The same to global memory, spelt out: at some places the compiler takes the pieces of `store`
  /// apart and stores four bytes at a time.
  __device__ __forceinline__ void store_global(T* to) const {
    if constexpr (kBytes % 16 == 0) {
#pragma unroll
      for (int i = 0; i < kCount; i += 4)
        asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(
                         __cvta_generic_to_global(reinterpret_cast<uint4*>(to) + i / 4)),
                     "r"(w[i]), "r"(w[i + 1]), "r"(w[i + 2]), "r"(w[i + 3])
                     : "memory");
    } else {
      store(to);
    }
  }
  /// The first n elements, the others 0.
  __device__ __forceinline__ static Words load_some(const T* from, int n) {
    Words words = zero();
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (i >= n) continue;
      if constexpr (sizeof(T) == 2)
        words.w[i / 2] |= uint32_t{reinterpret_cast<const uint16_t*>(from)[i]} << (i % 2 * 16);
      else
#pragma unroll
        for (int part = 0; part < int(sizeof(T)) / 4; ++part)
          words.w[i * int(sizeof(T)) / 4 + part] =
              reinterpret_cast<const uint32_t*>(from)[i * int(sizeof(T)) / 4 + part];
    }
    return words;
  }
  __device__ __forceinline__ T operator[](int i) const {
    if constexpr (sizeof(T) == 2) {
      T value;
      value.bits = static_cast<uint16_t>(i % 2 == 0 ? w[i / 2] : w[i / 2] >> 16);
      return value;
    } else if constexpr (sizeof(T) == 4) {
      return __uint_as_float(w[i]);
    } else {
      return __hiloint2double(int(w[2 * i + 1]), int(w[2 * i]));
    }
  }
};

}  // namespace norma
