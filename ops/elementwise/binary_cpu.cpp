#include <cmath>
#include <functional>
#include <numbers>

#include "norma/ops/elementwise/kernels.h"
#include "norma/ops/elementwise/operands_cpu.h"
#include "norma/ops/elementwise/packets_cpu.h"

namespace norma {
namespace {

using detail::kChunk;
using detail::Operands;

/// y = f(a, b) in a loop for each of the three ways to step, so that each one vectorizes.
template <class A, class Y, class F>
void zip(const Operands<A>& a, const Operands<A>& b, Y* y, int64_t n, const F& f) {
  if (a.step == 1 && b.step == 1) {
    for (int64_t i = 0; i < n; ++i) y[i] = f(a.data[i], b.data[i]);
  } else if (a.step == 1) {
    const A right = b.data[0];
    for (int64_t i = 0; i < n; ++i) y[i] = f(a.data[i], right);
  } else if (b.step == 1) {
    const A left = a.data[0];
    for (int64_t i = 0; i < n; ++i) y[i] = f(left, b.data[i]);
  } else {
    std::fill_n(y, n, f(a.data[0], b.data[0]));
  }
}

/// f(a, b) on packets; for the gradients of activations, whose operands are rarely repeated.
template <class Acc, class F>
void zip_packets(const Operands<Acc>& a, const Operands<Acc>& b, Acc* y, int64_t n, const F& f) {
  Acc left[kChunk], right[kChunk];
  const auto dense = [n](const Operands<Acc>& o, Acc* buffer) {
    if (o.step == 1) return o.data;
    std::fill_n(buffer, n, *o.data);
    return static_cast<const Acc*>(buffer);
  };
  detail::map_packets(n, y, f, dense(a, left), dense(b, right));
}

void evaluate(BinaryFunction function, const Operands<int64_t>& a, const Operands<int64_t>& b,
              int64_t* y, int64_t n) {
  using enum BinaryFunction;
  const auto wrapping = [](auto f) {
    return [f](int64_t u, int64_t v) {
      return static_cast<int64_t>(f(static_cast<uint64_t>(u), static_cast<uint64_t>(v)));
    };
  };
  switch (function) {
    case add:
      zip(a, b, y, n, wrapping(std::plus<>()));
      break;
    case sub:
      zip(a, b, y, n, wrapping(std::minus<>()));
      break;
    case mul:
      zip(a, b, y, n, wrapping(std::multiplies<>()));
      break;
    case minimum:
      zip(a, b, y, n, [](int64_t u, int64_t v) { return std::min(u, v); });
      break;
    case maximum:
      zip(a, b, y, n, [](int64_t u, int64_t v) { return std::max(u, v); });
      break;
    default:
      break;  // the ops take no integers there
  }
}

template <class Acc>
void evaluate(BinaryFunction function, const Operands<Acc>& a, const Operands<Acc>& b, Acc* y,
              int64_t n) {
  using enum BinaryFunction;
  constexpr Acc one = 1, half = Acc(0.5);
  switch (function) {
    case add:
      zip(a, b, y, n, std::plus<>());
      break;
    case sub:
      zip(a, b, y, n, std::minus<>());
      break;
    case mul:
      zip(a, b, y, n, std::multiplies<>());
      break;
    case div:
      zip(a, b, y, n, std::divides<>());
      break;
    case pow:
      zip(a, b, y, n, [](Acc u, Acc v) { return std::pow(u, v); });
      break;
    case minimum:  // u + v is NaN where one of them is
      zip(a, b, y, n, [](Acc u, Acc v) { return u != u || v != v ? u + v : u < v ? u : v; });
      break;
    case maximum:
      zip(a, b, y, n, [](Acc u, Acc v) { return u != u || v != v ? u + v : u > v ? u : v; });
      break;
    case tanh_backward:
      zip(a, b, y, n, [](Acc dy, Acc t) { return dy * (1 - t * t); });
      break;
    case sigmoid_backward:
      zip(a, b, y, n, [](Acc dy, Acc s) { return dy * s * (1 - s); });
      break;
    case relu_backward:
      zip(a, b, y, n, [](Acc dy, Acc x) { return x <= 0 ? Acc(0) : dy; });
      break;
    case silu_backward:
      zip_packets(a, b, y, n, [&](const auto& dy, const auto& x) {
        const auto s = (one / (one + detail::exp_of(-x))).eval();
        return (dy * s * (one + x * (one - s))).eval();
      });
      break;
    case gelu_backward:
      zip_packets(a, b, y, n, [&](const auto& dy, const auto& x) {
        constexpr Acc density = Acc(std::numbers::inv_sqrtpi / std::numbers::sqrt2);
        const auto cdf = (half * (one + (x * Acc(1 / std::numbers::sqrt2)).erf())).eval();
        return (dy * (cdf + x * detail::exp_of(-half * x.square()) * density)).eval();
      });
      break;
    case gelu_tanh_backward:
      zip_packets(a, b, y, n, [&](const auto& dy, const auto& x) {
        constexpr Acc scale = Acc(std::numbers::sqrt2 * std::numbers::inv_sqrtpi);
        constexpr Acc cubic = Acc(0.044715);
        const auto t = (scale * (x + cubic * x * x.square())).tanh().eval();
        const auto slope = scale * (one + 3 * cubic * x.square());
        return (half * dy * (one + t + x * (one - t.square()) * slope)).eval();
      });
      break;
  }
}

template <class Acc>
void evaluate(Comparison comparison, const Operands<Acc>& a, const Operands<Acc>& b, bool* y,
              int64_t n) {
  using enum Comparison;
  switch (comparison) {
    case equal:
      zip(a, b, y, n, std::equal_to<>());
      break;
    case not_equal:
      zip(a, b, y, n, std::not_equal_to<>());
      break;
    case less:
      zip(a, b, y, n, std::less<>());
      break;
    case less_equal:
      zip(a, b, y, n, std::less_equal<>());
      break;
    case greater:
      zip(a, b, y, n, std::greater<>());
      break;
    case greater_equal:
      zip(a, b, y, n, std::greater_equal<>());
      break;
  }
}

}  // namespace

void run(Cpu, const BinaryArgs& k) {
  const detail::StridedLoop<3> loop(k.y.shape, {k.a.strides, k.b.strides, k.y.strides});
  visit_all(k.y.dtype, [&]<class T>() {
    using Acc = detail::compute_t<T>;
    detail::for_chunks(loop, [&](const auto& offsets, int64_t first, int64_t n) {
      Acc left[kChunk], right[kChunk];
      const auto a = detail::load(k.a.as<T>() + offsets[0], loop.row_stride(0), first, n, left);
      const auto b = detail::load(k.b.as<T>() + offsets[1], loop.row_stride(1), first, n, right);
      detail::store<Acc>(k.y.as<T>() + offsets[2] + first, n,
                         [&](Acc* y) { evaluate(k.function, a, b, y, n); });
    });
  });
}

void run(Cpu, const CompareArgs& k) {
  const detail::StridedLoop<3> loop(k.y.shape, {k.a.strides, k.b.strides, k.y.strides});
  visit_all(k.a.dtype, [&]<class T>() {
    using Acc = detail::compute_t<T>;
    detail::for_chunks(loop, [&](const auto& offsets, int64_t first, int64_t n) {
      Acc left[kChunk], right[kChunk];
      const auto a = detail::load(k.a.as<T>() + offsets[0], loop.row_stride(0), first, n, left);
      const auto b = detail::load(k.b.as<T>() + offsets[1], loop.row_stride(1), first, n, right);
      evaluate(k.comparison, a, b, k.y.as<bool>() + offsets[2] + first, n);
    });
  });
}

void run(Cpu, const WhereArgs& k) {
  const detail::StridedLoop<4> loop(k.y.shape,
                                    {k.condition.strides, k.a.strides, k.b.strides, k.y.strides});
  visit_all(k.y.dtype, [&]<class T>() {
    detail::for_pieces(loop, [&](const auto& offsets, int64_t first, int64_t n) {
      const int64_t sc = loop.row_stride(0), sa = loop.row_stride(1), sb = loop.row_stride(2);
      const bool* condition = k.condition.as<bool>() + offsets[0] + first * sc;
      const T* a = k.a.as<T>() + offsets[1] + first * sa;
      const T* b = k.b.as<T>() + offsets[2] + first * sb;
      T* y = k.y.as<T>() + offsets[3] + first;
      for (int64_t i = 0; i < n; ++i) y[i] = condition[i * sc] ? a[i * sa] : b[i * sb];
    });
  });
}

}  // namespace norma
