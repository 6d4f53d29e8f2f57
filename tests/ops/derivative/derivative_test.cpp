#include "norma/ops/derivative/derivative.h"

#include "norma/core/autograd.h"
#include "norma/core/random.h"
#include "norma/ops/derivative/gradcheck.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"

namespace norma {
namespace {

/// y = x², with a gradient that is wrong in one element.
struct WrongSquare {
  static Tensor forward(Context& ctx, const Tensor& x) {
    ctx.save(x);
    return square(x);
  }
  static Tensor backward(Context& ctx, const Tensor& dy) {
    const Tensor error = eye(3, float64).slice(0, 1, 2) * 0.01;
    return dy * (ctx.saved(0) * 2 + error.reshape({3}));
  }
};

/// Right, but its gradient's gradient is lost.
struct OnceOnly {
  static Tensor forward(Context& ctx, const Tensor& x) {
    ctx.save(x);
    return square(x);
  }
  static Tensor backward(Context& ctx, const Tensor& dy) { return dy * ctx.saved(0).detach() * 2; }
};

/// A user's own norm: the definition is enough.
struct CRMSNorm {
  static Tensor define(const Tensor& x, const Tensor& w) {
    Tensor c = x - x.mean(-1, keepdim);
    return w * c * rsqrt(c.square().mean(-1, keepdim) + 1e-6);
  }
};

TEST(Gradcheck, PassesWhatIsRight) {
  EXPECT_OK(gradcheck<CRMSNorm>(randn({3, 7}, float64), randn({7}, float64)));
  EXPECT_OK(gradgradcheck<CRMSNorm>(randn({3, 7}, float64), randn({7}, float64)));
}

TEST(Gradcheck, NamesTheWorstElement) {
  const GradcheckReport report = gradcheck<WrongSquare>(tensor({1, 2, 3}, float64));
  EXPECT_FALSE(report);
  EXPECT_THAT(report.text, ::testing::StartsWith("gradients differ; 3 elements checked"));
  EXPECT_THAT(report.text, ::testing::HasSubstr("the worst is input 0 at (1,)"));
}

TEST(Gradgradcheck, SeesALostSecondDerivative) {
  EXPECT_OK(gradcheck<OnceOnly>(randn({3}, float64)));
  EXPECT_FALSE(gradgradcheck<OnceOnly>(randn({3}, float64)));
}

TEST(Gradcheck, WantsFloat64) {
  EXPECT_THROW_MSG(gradcheck<CRMSNorm>(randn({3, 7}), randn({7})), DTypeError,
                   "gradcheck: at least one input must be float64, but none is");
}

const UnaryTensorFunction kTanhOfProduct = [](const Tensor& x) {
  return tanh(matmul(x.reshape({2, 3}), arange(12, float64).reshape({3, 4}) * 0.1));
};

TEST(Derivative, JacobianHasOneRowAnElement) {
  const Tensor x = randn({6}, float64), j = jacobian(kTanhOfProduct, x);
  EXPECT_EQ(j.shape(), Shape({2, 4, 6}));
  const Tensor v = randn({2, 4}, float64), u = randn({6}, float64);
  const testing::Closeness few{.absolute = 64 * unit_roundoff(float64)};
  EXPECT_TRUE(testing::close(vjp(kTanhOfProduct, x, v), (j * v.unsqueeze(-1)).sum(0).sum(0), few));
  EXPECT_TRUE(testing::close(jvp(kTanhOfProduct, x, u), (j * u).sum(-1), few));
}

TEST(Derivative, HvpIsTheHessianTimesV) {
  // f = Σ x³: H = diag(6 x).
  const Tensor x = randn({5}, float64), v = randn({5}, float64);
  const Tensor h = hvp([](const Tensor& t) { return (t * t * t).sum(); }, x, v);
  EXPECT_CLOSE(h, x * v * 6, {.relative = 8 * unit_roundoff(float64)});
}

TEST(Derivative, HvpOfALinearFunctionIsZero) {
  const Tensor x = randn({5}, float64);
  const Tensor h = hvp([](const Tensor& t) { return (t * 3).sum(); }, x, randn({5}, float64));
  EXPECT_SAME_BITS(h, zeros_like(x));
}

TEST(Derivative, CanBeDifferentiatedAgain) {
  const TensorFunction f = [](const auto& in) {
    return std::vector{jvp([](const Tensor& t) { return tanh(t); }, in[0], in[1])};
  };
  EXPECT_OK(gradcheck(f, {randn({4}, float64), randn({4}, float64)}));
}

TEST(Derivative, WrongVectorsAreNamed) {
  EXPECT_THROW_MSG(vjp([](const Tensor& t) { return t.sum(); }, ones({3}), ones({3})), ShapeError,
                   "vjp: v must be like f(x), (), but is (3,)");
  EXPECT_THROW_MSG(jvp([](const Tensor& t) { return t; }, ones({3}), ones({2})), ShapeError,
                   "jvp: v must be like x, (3,), but is (2,)");
}

}  // namespace
}  // namespace norma
