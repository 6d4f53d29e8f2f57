#include "norma/ops/elementwise/binary.h"

#include <cmath>

#include "norma/core/random.h"
#include "norma/ops/elementwise/compare.h"
#include "norma/ops/elementwise/unary.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"

namespace norma {
namespace {

using testing::kInf;
using testing::kNan;

struct Function {
  const char* name;
  Tensor (*ours)(const Operand&, const Operand&);
  double (*theirs)(double, double);
};
const Function kFunctions[] = {
    {"add", add, [](double a, double b) { return a + b; }},
    {"sub", sub, [](double a, double b) { return a - b; }},
    {"mul", mul, [](double a, double b) { return a * b; }},
    {"div", div, [](double a, double b) { return a / b; }},
    {"pow", norma::pow, [](double a, double b) { return std::pow(a, b); }},
    {"minimum", minimum, [](double a, double b) { return std::min(a, b); }},
    {"maximum", maximum, [](double a, double b) { return std::max(a, b); }},
};

/// Operands that every function takes: positive, away from each other.
Tensor positive(const Shape& shape, DType dtype = float64) {
  return (rand(shape, float64) * 2 + 0.5).to(dtype);
}

template <class T>
class BinaryTest : public ::testing::Test {};
TYPED_TEST_SUITE(BinaryTest, testing::FloatingTypes);

TYPED_TEST(BinaryTest, IsTheFunctionRoundedOnceInEachDtype) {
  constexpr DType dtype = dtype_of<TypeParam>;
  // std::pow is within 1 ulp; the others are rounded correctly, half types from float32.
  const double bound = unit_roundoff(dtype) + 2 * unit_roundoff(stats_dtype(dtype));
  for (const Function& f : kFunctions) {
    SCOPED_TRACE(f.name);
    const Tensor a = positive({7, 93}, dtype), b = positive({7, 93}, dtype);
    auto expected = a.to_vector<double>();
    const auto right = b.to_vector<double>();
    for (size_t i = 0; i < expected.size(); ++i) expected[i] = f.theirs(expected[i], right[i]);
    EXPECT_CLOSE(f.ours(a, b), from_span<double>(expected, Shape{7, 93}), {.relative = bound});
  }
}

struct Broadcast {
  Shape a, b;
  const char* why;
};
const Broadcast kBroadcasts[] = {
    {{3, 5}, {3, 5}, "equal"},    {{3, 5}, {5}, "a row"},
    {{3, 5}, {3, 1}, "a column"}, {{}, {2, 3}, "a number"},
    {{2, 1, 4}, {3, 1}, "both"},  {{0, 4}, {4}, "no rows"},
    {{1, 1}, {1}, "one element"}, {{1, 3}, {4, 1}, "an outer product"},
};

TEST(Binary, BroadcastsAsExpandedOperandsWould) {
  for (const auto& [a_shape, b_shape, why] : kBroadcasts) {
    SCOPED_TRACE(why);
    const Tensor a = positive(a_shape), b = positive(b_shape);
    const Shape shape = broadcast_shapes("test", a_shape, b_shape);
    for (const Function& f : kFunctions)
      EXPECT_SAME_BITS(f.ours(a, b),
                       f.ours(a.expand(shape).contiguous(), b.expand(shape).contiguous()));
  }
}

TEST(Binary, GradientIsTheDerivative) {
  for (const auto& [a_shape, b_shape, why] : kBroadcasts) {
    SCOPED_TRACE(why);
    for (const Function& f : kFunctions) {
      SCOPED_TRACE(f.name);
      const TensorFunction g = [&](const auto& in) { return std::vector{f.ours(in[0], in[1])}; };
      const std::vector<Tensor> in{positive(a_shape), positive(b_shape)};
      EXPECT_OK(gradcheck(g, in));
      EXPECT_OK(gradgradcheck(g, in));
    }
  }
}

TEST(Binary, NanReachesMinimumAndMaximum) {
  const Tensor a = tensor({kNan, 1, kNan, 2, -kInf}), b = tensor({1, kNan, kNan, 1, 0});
  EXPECT_CLOSE(minimum(a, b), tensor({kNan, kNan, kNan, 1, -kInf}), {});
  EXPECT_CLOSE(maximum(a, b), tensor({kNan, kNan, kNan, 2, 0}), {});
}

TEST(Binary, EqualOperandsOfMaximumShareTheGradient) {
  const Tensor a = tensor({1, 2, 3}).requires_grad_(), b = tensor({3, 2, 1}).requires_grad_();
  maximum(a, b).sum().backward();
  EXPECT_SAME_BITS(a.grad(), tensor({0, 0.5, 1}));
  EXPECT_SAME_BITS(b.grad(), tensor({1, 0.5, 0}));
}

TEST(Pow, ZeroToAPowerHasAFiniteGradient) {
  const Tensor a = tensor({0, 0, 2}, float64).requires_grad_();
  const Tensor b = tensor({0, 2, 0}, float64).requires_grad_();
  norma::pow(a, b).sum().backward();
  EXPECT_SAME_BITS(a.grad(), tensor({0, 0, 0}, float64));
  EXPECT_CLOSE(b.grad(), tensor({0, 0, std::log(2.0)}, float64), {.relative = 1e-15});
}

TEST(Binary, IntegersWrapAroundAndNeverDivide) {
  EXPECT_SAME_BITS(tensor({1, 2}, int64) + tensor({3, 4}, int64), tensor({4, 6}, int64));
  EXPECT_SAME_BITS(tensor({6, 7}, int32) * 3, tensor({18, 21}, int32));
  EXPECT_THROW_MSG(tensor({1}, int64) / tensor({1}, int64), DTypeError,
                   "div: a and b must be floating, but are int64; convert them with .to(float32)");
}

TEST(Binary, NothingIsPromoted) {
  EXPECT_THROW_MSG(ones({2}) + ones({2}, float64), DTypeError,
                   "add: a and b must have one dtype, but are float32 and float64; convert one "
                   "with .to(dtype)");
  EXPECT_EQ((ones({2}, bfloat16) * 2.0).dtype(), bfloat16);
}

TEST(Compare, NanEqualsNothing) {
  const Tensor a = tensor({1, 2, kNan}), b = tensor({2, 2, kNan});
  EXPECT_SAME_BITS(equal(a, b), tensor({0, 1, 0}, bool_));
  EXPECT_SAME_BITS(not_equal(a, b), tensor({1, 0, 1}, bool_));
  EXPECT_SAME_BITS(a < b, tensor({1, 0, 0}, bool_));
  EXPECT_SAME_BITS(a <= b, tensor({1, 1, 0}, bool_));
  EXPECT_SAME_BITS(a > b, tensor({0, 0, 0}, bool_));
  EXPECT_SAME_BITS(a >= b, tensor({0, 1, 0}, bool_));
  EXPECT_SAME_BITS(tensor({1, 5}, int64) > 2, tensor({0, 1}, bool_));
}

TEST(Where, WhatIsNotChosenLeavesNoTrace) {
  const Tensor x = tensor({-1, 4}).requires_grad_();
  where(x > 0, norma::sqrt(maximum(x, 0)), kNan).slice(0, 1, 2).sum().backward();
  EXPECT_SAME_BITS(x.grad(), tensor({0, 0.25}));
}

TEST(Where, BroadcastsAndHasTheGradientOfItsChoice) {
  const Tensor condition = tensor({1, 0, 1}, bool_);
  const TensorFunction f = [&](const auto& in) {
    return std::vector{where(condition, in[0], in[1])};
  };
  EXPECT_OK(gradcheck(f, {randn({2, 1}, float64), randn({3}, float64)}));
  EXPECT_OK(gradgradcheck(f, {randn({2, 1}, float64), randn({3}, float64)}));
  EXPECT_THROW_MSG(where(ones({2}), ones({2}), ones({2})), DTypeError,
                   "where: condition must be bool, but is float32");
}

}  // namespace
}  // namespace norma
