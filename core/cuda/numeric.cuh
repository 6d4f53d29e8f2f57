#pragma once

#include <cstdint>
#include <type_traits>

#include "norma/core/dtype.h"

namespace norma {

// Conversions by the hardware's instructions; the same values as dtype.h's, but a NaN loses its
// payload. Spelt out: cuda_bf16.h and cuda_fp16.h take nvcc as long as many a kernel.

template <class To, class From>
__device__ __forceinline__ To convert(From v) {
  if constexpr (std::is_same_v<To, From>) {
    return v;
  } else if constexpr (std::is_same_v<To, bool>) {
    return v != From(0);
  } else if constexpr (std::is_same_v<To, BFloat16>) {
    To result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(convert<float>(v)));
    return result;
  } else if constexpr (std::is_same_v<To, Float16>) {
    To result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(convert<float>(v)));
    return result;
  } else if constexpr (std::is_same_v<From, BFloat16>) {
    return static_cast<To>(__uint_as_float(uint32_t{v.bits} << 16));
  } else if constexpr (std::is_same_v<From, Float16>) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
    return static_cast<To>(wide);
  } else {
    return static_cast<To>(v);
  }
}

/// What a T is computed in: float for the half types, 64 bits for integers and bool.
template <class T>
using compute_t =
    std::conditional_t<is_floating(dtype_of<T>),
                       std::conditional_t<std::is_same_v<T, double>, double, float>, int64_t>;

template <class T>
__device__ __forceinline__ T square(T v) {
  return v * v;
}

// For code that is written once for float and double.
__device__ __forceinline__ float exp_of(float v) { return expf(v); }
__device__ __forceinline__ double exp_of(double v) { return ::exp(v); }
__device__ __forceinline__ float log_of(float v) { return logf(v); }
__device__ __forceinline__ double log_of(double v) { return ::log(v); }

// Of float within 2^-22 by one instruction, subnormals as zeros; of double exact.
__device__ __forceinline__ float exp2_fast(float v) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(v));
  return y;
}
__device__ __forceinline__ double exp2_fast(double v) { return ::exp2(v); }
__device__ __forceinline__ float reciprocal_fast(float v) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(v));
  return y;
}
__device__ __forceinline__ double reciprocal_fast(double v) { return 1 / v; }
/// 1 / (1 + e^−v)
template <class Acc>
__device__ __forceinline__ Acc sigmoid_fast(Acc v) {
  return reciprocal_fast(1 + exp2_fast(v * Acc(-1.4426950408889634)));
}

/// Two half-width numbers in one register, the first in its lower half.
template <class T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
  uint32_t r;
  if constexpr (std::is_same_v<T, BFloat16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <class T>
__device__ __forceinline__ float2 unpack_pair(uint32_t pair) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
  } else {
    float2 r;
    asm("{.reg .f16 low, high;\nmov.b32 {low, high}, %1;\ncvt.f32.f16 %0, low;}"
        : "=f"(r.x)
        : "r"(pair));
    asm("{.reg .f16 low, high;\nmov.b32 {low, high}, %1;\ncvt.f32.f16 %0, high;}"
        : "=f"(r.y)
        : "r"(pair));
    return r;
  }
}

}  // namespace norma
