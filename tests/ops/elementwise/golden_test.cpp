// Every elementwise function and its gradient at awkward points, beside PyTorch's.
#include "testing/golden.h"

#include <cmath>
#include <limits>

#include "norma/core/autograd.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/compare.h"
#include "testing/compare.h"

namespace norma {
namespace {

constexpr double kUpstream = 1.5, kRoundoff = unit_roundoff(float64);
// Eigen's functions flush results below the smallest normal number.
constexpr double kSmallest = std::numeric_limits<double>::min();

const testing::Golden& values() {
  static const testing::Golden g = testing::golden("ops/elementwise/elementwise");
  return g;
}
Tensor upstream(const Tensor& y) { return full(y.shape(), kUpstream, float64); }

/// Points at which we mean to differ from PyTorch; they are left out here and tested below.
enum class But { nothing, nan, subnormal };
Tensor without(But but, const Tensor& x, const Tensor& y) {
  switch (but) {
    case But::nothing:
      return y;
    case But::nan:
      return where(equal(x, x), y, 0);
    case But::subnormal:  // |x| strictly between 0 and the smallest normal number
      return where(less(norma::abs(norma::abs(x) - kSmallest / 2), kSmallest / 2), 0, y);
  }
  return y;
}

struct Compared {
  const char* name;
  Tensor (*f)(const Tensor&);
  double roundings;  // of the function, in units of roundoff; its gradient has twice as many
  double absolute = 0;
  But but = But::nothing;
  double cancels = 0;  // units of roundoff that the gradient loses where its terms cancel
};
void PrintTo(const Compared& f, std::ostream* out) { *out << f.name; }

class GoldenUnary : public ::testing::TestWithParam<Compared> {};
TEST_P(GoldenUnary, ValueAndGradientAreThoseOfPytorch) {
  const auto [name, f, roundings, absolute, but, cancels] = GetParam();
  const Tensor x = values()["x"].requires_grad_(), points = x.detach();
  const Tensor y = f(x), dx = grad({y}, {x}, {upstream(y)})[0];
  const std::string key = name;
  EXPECT_CLOSE(without(but, points, y.detach()), without(but, points, values()[key + ".y"]),
               {.relative = roundings * kRoundoff, .absolute = absolute * kRoundoff + kSmallest});
  EXPECT_CLOSE(without(but, points, dx), without(but, points, values()[key + ".dx"]),
               {.relative = (2 * roundings + 2) * kRoundoff,
                .absolute = (2 * absolute + cancels) * kRoundoff + kSmallest});
}
INSTANTIATE_TEST_SUITE_P(
    All, GoldenUnary,
    ::testing::Values(Compared{"neg", neg, 0}, Compared{"abs", norma::abs, 0, 0, But::nan},
                      Compared{"sign", sign, 0, 0, But::nan}, Compared{"square", square, 1},
                      Compared{"reciprocal", reciprocal, 1}, Compared{"sqrt", norma::sqrt, 2},
                      Compared{"rsqrt", rsqrt, 2}, Compared{"exp", norma::exp, 5},
                      Compared{"expm1", norma::expm1, 5},
                      Compared{"log", norma::log, 3, 0, But::subnormal},
                      Compared{"log1p", norma::log1p, 4}, Compared{"sin", norma::sin, 4},
                      Compared{"cos", norma::cos, 4}, Compared{"erf", norma::erf, 6},
                      Compared{"tanh", norma::tanh, 6, 0, But::nothing, 12},  // 1 − t²
                      Compared{"sigmoid", sigmoid, 7}, Compared{"relu", relu, 0},
                      Compared{"softplus", softplus, 8}, Compared{"silu", silu, 8},
                      Compared{"gelu", gelu, 8, 40}, Compared{"gelu_tanh", gelu_tanh, 12, 40},
                      Compared{"clamp", [](const Tensor& x) { return clamp(x, -1, 1); }, 0, 0,
                               But::nan}),
    [](const auto& i) { return i.param.name; });

struct Arithmetic {
  const char* name;
  Tensor (*f)(const Operand&, const Operand&);
  double roundings;
  But but = But::nothing;
};
void PrintTo(const Arithmetic& f, std::ostream* out) { *out << f.name; }

class GoldenBinary : public ::testing::TestWithParam<Arithmetic> {};
TEST_P(GoldenBinary, ValueAndGradientsAreThoseOfPytorch) {
  const auto [name, f, roundings, but] = GetParam();
  const Tensor a = values()["a"].requires_grad_(), b = values()["b"].requires_grad_();
  const Tensor points = but == But::nan ? a.detach() + b.detach() * 0 : a.detach();
  const Tensor y = f(a, b);
  const auto grads = grad({y}, {a, b}, {upstream(y)});
  const std::string key = name;
  EXPECT_CLOSE(y.detach(), values()[key + ".y"],
               {.relative = roundings * kRoundoff, .absolute = kSmallest});
  const double more = (2 * roundings + 2) * kRoundoff;
  EXPECT_CLOSE(without(but, points, grads[0]), without(but, points, values()[key + ".da"]),
               {.relative = more, .absolute = kSmallest});
  EXPECT_CLOSE(without(but, points, grads[1]), without(but, points, values()[key + ".db"]),
               {.relative = more, .absolute = kSmallest});
}
INSTANTIATE_TEST_SUITE_P(All, GoldenBinary,
                         ::testing::Values(Arithmetic{"add", add, 0}, Arithmetic{"sub", sub, 0},
                                           Arithmetic{"mul", mul, 0}, Arithmetic{"div", div, 1},
                                           Arithmetic{"pow", norma::pow, 4, But::subnormal},
                                           Arithmetic{"minimum", minimum, 0, But::nan},
                                           Arithmetic{"maximum", maximum, 0, But::nan}),
                         [](const auto& i) { return i.param.name; });

TEST(GoldenUnary, WhereWeMeanToDifferFromPytorch) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Tensor x = tensor({nan, 1}, float64).requires_grad_(), one = ones({2}, float64);
  const auto gradient = [&](const Tensor& y) { return grad({y}, {x}, {one})[0]; };
  // The sign of NaN is NaN, not 0: no wrong number goes on unseen.
  EXPECT_SAME_BITS(sign(x).detach(), tensor({nan, 1}, float64));
  EXPECT_SAME_BITS(gradient(norma::abs(x)), tensor({nan, 1}, float64));
  // NaN is chosen by neither side, so neither has a gradient.
  EXPECT_SAME_BITS(gradient(clamp(x, -2, 2)), tensor({0, 1}, float64));
  EXPECT_SAME_BITS(gradient(minimum(x, 2)), tensor({0, 1}, float64));
  EXPECT_SAME_BITS(gradient(maximum(x, -2)), tensor({0, 1}, float64));
  // At a bound half of it.
  EXPECT_SAME_BITS(gradient(clamp(x, -1, 1)), tensor({0, 0.5}, float64));
}

TEST(GoldenCompare, EveryComparisonIsPytorchs) {
  const Tensor a = values()["a"], b = values()["b"];
  EXPECT_SAME_BITS(equal(a, b), values()["eq.y"]);
  EXPECT_SAME_BITS(not_equal(a, b), values()["ne.y"]);
  EXPECT_SAME_BITS(less(a, b), values()["lt.y"]);
  EXPECT_SAME_BITS(less_equal(a, b), values()["le.y"]);
  EXPECT_SAME_BITS(greater(a, b), values()["gt.y"]);
  EXPECT_SAME_BITS(greater_equal(a, b), values()["ge.y"]);
}
TEST(GoldenCompare, WhereTakesValueAndGradientFromTheChosenSide) {
  const Tensor a = values()["a"].requires_grad_(), b = values()["b"].requires_grad_();
  const Tensor y = where(a > b, a, b);
  const auto grads = grad({y}, {a, b}, {upstream(y)});
  EXPECT_SAME_BITS(y.detach(), values()["where.y"]);
  EXPECT_SAME_BITS(grads[0], values()["where.da"]);
  EXPECT_SAME_BITS(grads[1], values()["where.db"]);
}

}  // namespace
}  // namespace norma
