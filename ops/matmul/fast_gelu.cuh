#pragma once

#include "norma/core/cuda/numeric.cuh"

namespace norma {

/// GELU by tanh, x σ(v) with v = 2 √(2/π) (x + 0.044715 x³), and its slope, for a product's factors
/// that were rounded to 11 bits or fewer: off by 2⁻¹⁵ at most, a dozen instructions where tanh
/// alone takes thirty. By σ itself, not 1 + tanh: nothing is lost where they nearly cancel.
class FastGelu {
 public:
  __device__ __forceinline__ explicit FastGelu(float x) : x_(x), square_(x * x) {
    constexpr float kLog2E = 1.4426950408889634f;
    const float e = exp2_fast(x * (-kLog2E * kLinear - kLog2E * kCubic * square_));
    sigma_ = reciprocal_fast(1 + e);
  }
  __device__ __forceinline__ float value() const { return x_ * sigma_; }
  __device__ __forceinline__ float slope() const {
    return sigma_ + x_ * sigma_ * (1 - sigma_) * (kLinear + 3 * kCubic * square_);
  }

 private:
  static constexpr float kLinear = 1.5957691216057308f, kCubic = 0.044715f * kLinear;
  float x_, square_, sigma_;
};

}  // namespace norma
