#include <cmath>
#include <numbers>

#include "norma/ops/elementwise/kernels.h"
#include "norma/ops/elementwise/operands_cpu.h"
#include "norma/ops/elementwise/packets_cpu.h"

namespace norma {
namespace {

using detail::kChunk;

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

/// In plain loops where the compiler's own instructions round correctly (Eigen's square root is an
/// approximation on AVX-512), by Eigen's functions elsewhere.
template <class Acc>
void evaluate(UnaryFunction function, const Acc* x, Acc* y, int64_t n) {
  using enum UnaryFunction;
  constexpr Acc half = Acc(0.5), one = 1;
  const auto loop = [&](const auto& f) {
    for (int64_t i = 0; i < n; ++i) y[i] = f(x[i]);
  };
  const auto packets = [&](const auto& f) { detail::map_packets(n, y, f, x); };
  switch (function) {
    case neg:
      loop([](Acc v) { return -v; });
      break;
    case abs:
      loop([](Acc v) { return std::abs(v); });
      break;
    case sign:
      loop([](Acc v) { return v > 0 ? Acc(1) : v < 0 ? Acc(-1) : v; });
      break;
    case square:
      loop([](Acc v) { return v * v; });
      break;
    case reciprocal:
      loop([](Acc v) { return 1 / v; });
      break;
    case sqrt:
      loop([](Acc v) { return std::sqrt(v); });
      break;
    case rsqrt:
      loop([](Acc v) { return 1 / std::sqrt(v); });
      break;
    case relu:
      loop([](Acc v) { return v <= 0 ? Acc(0) : v; });
      break;
    case exp:
      packets([](const auto& v) { return detail::exp_of(v); });
      break;
    case expm1:
      packets([](const auto& v) { return v.expm1(); });
      break;
    case neg_exp:
      packets([](const auto& v) { return (-detail::exp_of(v)).eval(); });
      break;
    case log:
      packets([](const auto& v) { return v.log(); });
      break;
    case log1p:
      packets([](const auto& v) { return v.log1p(); });
      break;
    case sin:
      packets([](const auto& v) { return v.sin(); });
      break;
    case cos:
      packets([](const auto& v) { return v.cos(); });
      break;
    case tanh:
      packets([](const auto& v) { return v.tanh(); });
      break;
    case erf:
      packets([](const auto& v) { return v.erf(); });
      break;
    case sigmoid:
      packets([&](const auto& v) { return (one / (one + detail::exp_of(-v))).eval(); });
      break;
    case silu:
      packets([&](const auto& v) { return (v / (one + detail::exp_of(-v))).eval(); });
      break;
    case gelu:
      packets([&](const auto& v) {
        return half * v * (one + (v * Acc(1 / std::numbers::sqrt2)).erf());
      });
      break;
    case gelu_tanh:
      packets([&](const auto& v) {
        constexpr Acc scale = Acc(std::numbers::sqrt2 * std::numbers::inv_sqrtpi);
        return half * v * (one + (scale * (v + Acc(0.044715) * v * v.square())).tanh());
      });
      break;
    case softplus:
      loop([](Acc v) { return -std::abs(v); });
      detail::map_packets(
          n, y,
          [](const auto& v, const auto& e) {
            return (v.max(Acc(0)) + detail::exp_of(e).log1p()).eval();
          },
          x, static_cast<const Acc*>(y));
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
