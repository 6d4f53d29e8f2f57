#pragma once

#include <numbers>
#include <type_traits>

#include "norma/core/cuda/numeric.cuh"
#include "norma/ops/elementwise/kernels.h"

namespace norma {

// The functions of kernels.h on one value, in float, double or 64-bit integers, which wrap around.

template <class Acc>
__device__ __forceinline__ Acc sigmoid_of(Acc v) {
  return 1 / (1 + exp_of(-v));
}

template <class Acc>
__device__ Acc normal_cdf(Acc v) {
  return Acc(0.5) * (1 + ::erf(v * Acc(1 / std::numbers::sqrt2)));
}

/// The tanh of GELU's approximation, and its argument's slope.
template <class Acc>
struct GeluTanh {
  Acc t, slope;
  __device__ explicit GeluTanh(Acc x) {
    constexpr Acc scale = Acc(std::numbers::sqrt2 * std::numbers::inv_sqrtpi);
    constexpr Acc cubic = Acc(0.044715);
    t = ::tanh(scale * (x + cubic * x * x * x));
    slope = scale * (1 + 3 * cubic * x * x);
  }
};

__device__ inline int64_t evaluate(UnaryFunction function, int64_t v) {
  const auto u = static_cast<uint64_t>(v);
  switch (function) {
    case UnaryFunction::neg:
      return static_cast<int64_t>(-u);
    case UnaryFunction::abs:
      return static_cast<int64_t>(v < 0 ? -u : u);
    case UnaryFunction::sign:
      return (v > 0) - (v < 0);
    case UnaryFunction::square:
      return static_cast<int64_t>(u * u);
    default:
      return 0;  // the ops take no integers there
  }
}

template <class Acc>
requires std::is_floating_point_v<Acc> __device__ Acc evaluate(UnaryFunction function, Acc v) {
  switch (function) {
    case UnaryFunction::neg:
      return -v;
    case UnaryFunction::abs:
      return ::abs(v);
    case UnaryFunction::sign:
      return v > 0 ? Acc(1) : v < 0 ? Acc(-1) : v;
    case UnaryFunction::square:
      return v * v;
    case UnaryFunction::reciprocal:
      return 1 / v;
    case UnaryFunction::sqrt:
      return ::sqrt(v);
    case UnaryFunction::rsqrt:
      return 1 / ::sqrt(v);
    case UnaryFunction::exp:
      return exp_of(v);
    case UnaryFunction::expm1:
      return ::expm1(v);
    case UnaryFunction::neg_exp:
      return -exp_of(v);
    case UnaryFunction::log:
      return log_of(v);
    case UnaryFunction::log1p:
      return ::log1p(v);
    case UnaryFunction::sin:
      return ::sin(v);
    case UnaryFunction::cos:
      return ::cos(v);
    case UnaryFunction::tanh:
      return ::tanh(v);
    case UnaryFunction::erf:
      return ::erf(v);
    case UnaryFunction::sigmoid:
      return sigmoid_of(v);
    case UnaryFunction::silu:
      return v / (1 + exp_of(-v));
    case UnaryFunction::gelu:
      return v * normal_cdf(v);
    case UnaryFunction::gelu_tanh:
      return Acc(0.5) * v * (1 + GeluTanh<Acc>(v).t);
    case UnaryFunction::relu:
      return v <= 0 ? Acc(0) : v;
    case UnaryFunction::softplus:
      return (v < 0 ? Acc(0) : v) + ::log1p(exp_of(-::abs(v)));
  }
  return v;
}

__device__ inline int64_t evaluate(BinaryFunction function, int64_t a, int64_t b) {
  const auto u = static_cast<uint64_t>(a), v = static_cast<uint64_t>(b);
  switch (function) {
    case BinaryFunction::add:
      return static_cast<int64_t>(u + v);
    case BinaryFunction::sub:
      return static_cast<int64_t>(u - v);
    case BinaryFunction::mul:
      return static_cast<int64_t>(u * v);
    case BinaryFunction::minimum:
      return a < b ? a : b;
    case BinaryFunction::maximum:
      return a > b ? a : b;
    default:
      return 0;  // the ops take no integers there
  }
}

template <class Acc>
requires std::is_floating_point_v<Acc> __device__ Acc evaluate(BinaryFunction function, Acc a,
                                                               Acc b) {
  switch (function) {
    case BinaryFunction::add:
      return a + b;
    case BinaryFunction::sub:
      return a - b;
    case BinaryFunction::mul:
      return a * b;
    case BinaryFunction::div:
      return a / b;
    case BinaryFunction::pow:
      return ::pow(a, b);
    case BinaryFunction::minimum:  // a + b is NaN where one of them is
      return a != a || b != b ? a + b : a < b ? a : b;
    case BinaryFunction::maximum:
      return a != a || b != b ? a + b : a > b ? a : b;
    case BinaryFunction::tanh_backward:
      return a * (1 - b * b);
    case BinaryFunction::sigmoid_backward:
      return a * b * (1 - b);
    case BinaryFunction::relu_backward:
      return b <= 0 ? Acc(0) : a;
    case BinaryFunction::silu_backward: {
      const Acc s = sigmoid_of(b);
      return a * s * (1 + b * (1 - s));
    }
    case BinaryFunction::gelu_backward: {
      constexpr Acc density = Acc(std::numbers::inv_sqrtpi / std::numbers::sqrt2);
      return a * (normal_cdf(b) + b * exp_of(Acc(-0.5) * b * b) * density);
    }
    case BinaryFunction::gelu_tanh_backward: {
      const GeluTanh<Acc> g(b);
      return Acc(0.5) * a * (1 + g.t + b * (1 - g.t * g.t) * g.slope);
    }
  }
  return a;
}

}  // namespace norma
