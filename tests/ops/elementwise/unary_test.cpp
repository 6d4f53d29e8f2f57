#include "norma/ops/elementwise/unary.h"

#include <cmath>
#include <limits>

#include "norma/core/parallel.h"
#include "norma/core/random.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/compare.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"

namespace norma {
namespace {

using testing::kInf;
using testing::kNan;

double silu_of(double x) { return x / (1 + std::exp(-x)); }
double gelu_of(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }
double gelu_tanh_of(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
}
double softplus_of(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

struct UnaryFunction {
  const char* name;
  Tensor (*ours)(const Tensor&);
  double (*theirs)(double);
  double low, high;  // where it is defined and its condition number is modest
  double ulps;       // largest error measured for float32 over 2^16 points, rounded up
  double absolute;   // what cancellation leaves near a zero of the function, in units of roundoff
};
const UnaryFunction kUnaryFunctions[] = {
    {"neg", neg, [](double x) { return -x; }, -9, 9, 0, 0},
    {"abs", norma::abs, [](double x) { return std::abs(x); }, -9, 9, 0, 0},
    {"sign", sign, [](double x) { return (x > 0.0) - (x < 0.0) + 0.0; }, -9, 9, 0, 0},
    {"square", square, [](double x) { return x * x; }, -9, 9, 1, 0},
    {"reciprocal", reciprocal, [](double x) { return 1 / x; }, 0.1, 9, 1, 0},
    {"sqrt", norma::sqrt, [](double x) { return std::sqrt(x); }, 0, 99, 1, 0},
    {"rsqrt", rsqrt, [](double x) { return 1 / std::sqrt(x); }, 0.01, 99, 2, 0},
    {"exp", norma::exp, [](double x) { return std::exp(x); }, -80, 80, 5, 0},
    {"neg_exp", neg_exp, [](double x) { return -std::exp(x); }, -80, 80, 5, 0},
    {"expm1", norma::expm1, [](double x) { return std::expm1(x); }, -3, 9, 4, 0},
    {"log", norma::log, [](double x) { return std::log(x); }, 0.001, 99, 3, 0},
    {"log1p", norma::log1p, [](double x) { return std::log1p(x); }, -0.5, 99, 4, 0},
    {"sin", norma::sin, [](double x) { return std::sin(x); }, -9, 9, 4, 0},
    {"cos", norma::cos, [](double x) { return std::cos(x); }, -9, 9, 4, 0},
    {"erf", norma::erf, [](double x) { return std::erf(x); }, -4, 4, 6, 0},
    {"tanh", norma::tanh, [](double x) { return std::tanh(x); }, -9, 9, 6, 0},
    {"sigmoid", sigmoid, [](double x) { return 1 / (1 + std::exp(-x)); }, -80, 80, 7, 0},
    {"silu", silu, silu_of, -80, 80, 8, 0},
    // 1 + erf and 1 + tanh cancel on the far left: their error is absolute, x times a few
    // roundings.
    {"gelu", gelu, gelu_of, -9, 9, 8, 40},
    {"gelu_tanh", gelu_tanh, gelu_tanh_of, -9, 9, 12, 40},
    {"relu", relu, [](double x) { return std::max(x, 0.0); }, -9, 9, 0, 0},
    {"softplus", softplus, softplus_of, -80, 80, 8, 0},
};

template <class T>
class UnaryTest : public ::testing::Test {};
TYPED_TEST_SUITE(UnaryTest, testing::FloatingTypes);

TYPED_TEST(UnaryTest, IsTheFunctionWithinItsMeasuredError) {
  constexpr DType dtype = dtype_of<TypeParam>;
  const double compute = unit_roundoff(stats_dtype(dtype)), rounding = unit_roundoff(dtype);
  // Half a step of the subnormal numbers, where relative bounds end.
  const double smallest = dtype == float16 ? 0x1p-25 : std::numeric_limits<float>::min();
  for (const UnaryFunction& f : kUnaryFunctions) {
    SCOPED_TRACE(f.name);
    const Tensor x = linspace(f.low, f.high, 1237, float64).to(dtype);
    std::vector<double> expected = x.to_vector<double>();
    for (double& v : expected) v = f.theirs(v);
    EXPECT_CLOSE(
        f.ours(x), from_span<double>(expected).to(dtype),
        {.relative = f.ulps * compute + 2 * rounding, .absolute = f.absolute * compute + smallest});
  }
}

TEST(Unary, GradientIsTheDerivative) {
  for (const UnaryFunction& f : kUnaryFunctions) {
    SCOPED_TRACE(f.name);
    const double low = std::max(f.low, -3.0), high = std::min(f.high, 3.0);
    Tensor x = rand({3, 7}, float64) * (high - low) * 0.9 + (low + 0.05 * (high - low));
    const TensorFunction g = [&](const auto& in) { return std::vector{f.ours(in[0])}; };
    EXPECT_OK(gradcheck(g, {x}));
    EXPECT_OK(gradgradcheck(g, {x}));
  }
}

template <class Op>
class Activation : public ::testing::Test {};
using Activations = ::testing::Types<Sigmoid, Relu, Softplus, Silu, Gelu, GeluTanh>;
TYPED_TEST_SUITE(Activation, Activations);

TYPED_TEST(Activation, KernelIsItsDefinition) {
  const Tensor x = randn({5, 33}, float64);
  EXPECT_CLOSE(apply<TypeParam>(x), TypeParam::define(x),
               {.relative = 16 * unit_roundoff(float64), .absolute = 16 * unit_roundoff(float64)});
}

template <class Op>
class ActivationGradient : public ::testing::Test {};
using Gradients = ::testing::Types<TanhBackward, SigmoidBackward, ReluBackward, SiluBackward,
                                   GeluBackward, GeluTanhBackward>;
TYPED_TEST_SUITE(ActivationGradient, Gradients);

TYPED_TEST(ActivationGradient, KernelIsItsDefinition) {
  const Tensor dy = randn({5, 33}, float64), x = rand({5, 33}, float64) * 4 - 2;
  EXPECT_CLOSE(apply<TypeParam>(dy, x), TypeParam::define(dy, x),
               {.relative = 32 * unit_roundoff(float64), .absolute = 32 * unit_roundoff(float64)});
}
TYPED_TEST(ActivationGradient, HasAGradientItself) {
  const Tensor dy = randn({3, 5}, float64), x = rand({3, 5}, float64) * 4 - 2;
  EXPECT_OK(gradcheck<TypeParam>(dy, x));
}

TEST(Unary, NegExpHasItselfAsDerivative) {
  EXPECT_OK(gradcheck<NegExp>(randn({3, 5}, float64)));
  EXPECT_OK(gradgradcheck<NegExp>(randn({3, 5}, float64)));
}

TEST(Unary, SpecialValuesAreThoseOfIeee) {
  for (DType dtype : {float32, float64}) {
    SCOPED_TRACE(to_string(dtype));
    const Tensor x = tensor({-kInf, kInf, kNan, -1000, 1000}, dtype);
    const auto expect = [](const Tensor& y, std::initializer_list<double> values) {
      EXPECT_CLOSE(y, tensor(values, y.dtype()), {});
    };
    expect(norma::exp(x), {0, kInf, kNan, 0, kInf});
    expect(neg_exp(x), {0, -kInf, kNan, 0, -kInf});
    expect(norma::tanh(x), {-1, 1, kNan, -1, 1});
    expect(norma::erf(x), {-1, 1, kNan, -1, 1});
    expect(sigmoid(x), {0, 1, kNan, 0, 1});
    expect(relu(x), {0, kInf, kNan, 0, 1000});
    expect(softplus(x), {0, kInf, kNan, 0, 1000});
    expect(norma::log(tensor({0, -1, kInf, kNan}, dtype)), {-kInf, kNan, kInf, kNan});
    expect(rsqrt(tensor({0, -1, kInf, kNan}, dtype)), {kInf, kNan, 0, kNan});
    expect(sign(x), {-1, 1, kNan, -1, 1});
  }
}

TEST(Unary, StridesAndThreadsDoNotChangeABit) {
  const int before = num_threads();
  const Tensor x = randn({257, 301});
  const Tensor expected = gelu(x.t().contiguous());
  for (int threads : {1, 3}) {
    set_num_threads(threads);
    EXPECT_SAME_BITS(gelu(x.t()), expected);
  }
  EXPECT_SAME_BITS(silu(x.slice(1, 3, 290, 4)), silu(x).slice(1, 3, 290, 4));
  EXPECT_SAME_BITS(silu(ones({1}).expand({700})), silu(ones({700})));
  set_num_threads(before);
}

TEST(Unary, EmptyStaysEmpty) {
  EXPECT_EQ(silu(zeros({0, 8})).shape(), Shape({0, 8}));
  EXPECT_EQ(silu(zeros({})).shape(), Shape({}));
}

TEST(Unary, IntegersWhereTheyMakeSense) {
  EXPECT_SAME_BITS(neg(tensor({1, -2, 0}, int64)), tensor({-1, 2, 0}, int64));
  EXPECT_SAME_BITS(norma::abs(tensor({1, -2, 0}, int32)), tensor({1, 2, 0}, int32));
  EXPECT_THROW_MSG(norma::exp(tensor({1}, int64)), DTypeError,
                   "exp: x must be floating, but is int64; convert it with .to(float32)");
  EXPECT_THROW_MSG(neg(zeros({1}, bool_)), DTypeError,
                   "neg: x must be a number, but is bool; convert it with .to(float32)");
}

TEST(Clamp, KeepsBetweenTheBoundsAndPassesTheGradientInside) {
  Tensor x = tensor({-2, -0.5, 0.5, 2}).requires_grad_();
  Tensor y = clamp(x, -1, 1);
  EXPECT_SAME_BITS(y.detach(), tensor({-1, -0.5, 0.5, 1}));
  y.sum().backward();
  EXPECT_SAME_BITS(x.grad(), tensor({0, 1, 1, 0}));
  EXPECT_THROW_MSG(clamp(x, 1, -1), ValueError,
                   "clamp: low must not exceed high, but they are 1 and -1");
}

}  // namespace
}  // namespace norma
