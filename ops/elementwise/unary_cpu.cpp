#include <Eigen/Core>
#include <cmath>
#include <numbers>
#include <unsupported/Eigen/SpecialFunctions>

#include "norma/ops/elementwise/kernels.h"
#include "norma/ops/elementwise/operands_cpu.h"

namespace norma {
namespace {

using detail::kChunk;

template <class Acc>
using Array = Eigen::Map<Eigen::Array<Acc, Eigen::Dynamic, 1>>;
template <class Acc>
using ConstArray = Eigen::Map<const Eigen::Array<Acc, Eigen::Dynamic, 1>>;

/// Integers wrap around, as everywhere in C++'s unsigned arithmetic.
void evaluate(UnaryFunction function, const int64_t* x, int64_t* y, int64_t n) {
  using enum UnaryFunction;
  const auto wrap = [](int64_t v) { return static_cast<uint64_t>(v); };
  for (int64_t i = 0; i < n; ++i) {
    const int64_t v = x[i];
    switch (function) {
      case neg:
        y[i] = static_cast<int64_t>(-wrap(v));
        break;
      case abs:
        y[i] = static_cast<int64_t>(v < 0 ? -wrap(v) : wrap(v));
        break;
      case sign:
        y[i] = (v > 0) - (v < 0);
        break;
      case square:
        y[i] = static_cast<int64_t>(wrap(v) * wrap(v));
        break;
      default:
        break;  // the ops take no integers there
    }
  }
}

template <class Acc>
void evaluate(UnaryFunction function, const Acc* from, Acc* to, int64_t n) {
  using enum UnaryFunction;
  const ConstArray<Acc> x(from, n);
  Array<Acc> y(to, n);
  constexpr Acc half = Acc(0.5), one = 1;
  switch (function) {
    case neg:
      y = -x;
      break;
    case abs:
      y = x.abs();
      break;
    case sign:
      for (int64_t i = 0; i < n; ++i)
        to[i] = from[i] > 0 ? Acc(1) : from[i] < 0 ? Acc(-1) : from[i] * 0;
      break;
    case square:
      y = x.square();
      break;
    case reciprocal:
      y = one / x;
      break;
    case sqrt:
      y = x.sqrt();
      break;
    case rsqrt:
      y = one / x.sqrt();
      break;  // Eigen's rsqrt is an approximation, 2 ulp off
    case exp:
      y = x.exp();
      break;
    case expm1:
      y = x.expm1();
      break;
    case log:
      y = x.log();
      break;
    case log1p:
      y = x.log1p();
      break;
    case sin:
      y = x.sin();
      break;
    case cos:
      y = x.cos();
      break;
    case tanh:
      y = x.tanh();
      break;
    case erf:
      y = x.erf();
      break;
    case sigmoid:
      y = one / (one + (-x).exp());
      break;
    case silu:
      y = x / (one + (-x).exp());
      break;
    case gelu:
      y = half * x * (one + (x * Acc(1 / std::numbers::sqrt2)).erf());
      break;
    case gelu_tanh:
      y = half * x *
          (one + ((x + Acc(0.044715) * x * x.square()) *
                  Acc(std::numbers::sqrt2 * std::numbers::inv_sqrtpi))
                     .tanh());
      break;
    case relu:
      for (int64_t i = 0; i < n; ++i) to[i] = from[i] <= 0 ? Acc(0) : from[i];
      break;
    case softplus:
      for (int64_t i = 0; i < n; ++i) to[i] = -std::abs(from[i]);
      y = y.exp().log1p();
      for (int64_t i = 0; i < n; ++i) to[i] += from[i] <= 0 ? Acc(0) : from[i];
      break;
  }
}

}  // namespace

void run(Cpu, const UnaryArgs& k) {
  const detail::StridedLoop<2> loop(k.y.shape, {k.x.strides, k.y.strides});
  visit_all(k.x.dtype, [&]<class T>() {
    using Acc = detail::compute_t<T>;
    detail::for_chunks(loop, [&](const auto& offsets, int64_t first, int64_t n) {
      Acc buffer[kChunk];
      const auto x = detail::load(k.x.as<T>() + offsets[0], loop.row_stride(0), first, n, buffer);
      if (x.step == 0) std::fill_n(buffer + 1, n - 1, buffer[0]);
      detail::store<Acc>(k.y.as<T>() + offsets[1] + first, n,
                         [&](Acc* y) { evaluate(k.function, x.data, y, n); });
    });
  });
}

}  // namespace norma
