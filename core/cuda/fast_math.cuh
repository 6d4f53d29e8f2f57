#pragma once

namespace norma {

/// 2ᵛ by the unit for it: off by 2⁻²² of itself, 0 for what would be subnormal.
__device__ __forceinline__ float fast_exp2(float v) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

}  // namespace norma
