#include "norma/ops/softmax/softmax.h"

#include <cmath>

#include "norma/core/parallel.h"
#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"

namespace norma {
namespace {

using testing::kInf;
using testing::kNan;
const Shape kShapes[] = {{0, 4}, {1, 1}, {3, 7}, {2, 3, 33}, {5, 1000}, {2, 4099}};

template <class T>
class SoftmaxTest : public ::testing::Test {};
TYPED_TEST_SUITE(SoftmaxTest, testing::FloatingTypes);

TYPED_TEST(SoftmaxTest, KernelIsItsDefinitionRounded) {
  constexpr DType dtype = dtype_of<TypeParam>;
  // Exponents up to 10 carry ten roundings of their argument, exp five, the sum about D/32 + 5.
  const double stats = 64 * unit_roundoff(stats_dtype(dtype)), round = unit_roundoff(dtype);
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(to_string(shape));
    const Tensor x = (randn(shape, float64) * 3).to(dtype), wide = x.to(float64);
    EXPECT_CLOSE(apply<Softmax>(x), Softmax::define(wide),
                 {.relative = stats + round, .absolute = 0x1p-25});
    EXPECT_CLOSE(apply<LogSoftmax>(x), LogSoftmax::define(wide),
                 {.relative = stats + round, .absolute = stats});
    EXPECT_CLOSE(apply<LogSumExp>(x), LogSumExp::define(wide),
                 {.relative = stats + round, .absolute = stats});
    const Tensor dy = randn(shape, float64).to(dtype), y = apply<Softmax>(x);
    EXPECT_CLOSE(apply<SoftmaxBackward>(dy, y),
                 SoftmaxBackward::define(dy.to(float64), y.to(float64)),
                 {.relative = round, .absolute = stats + 0x1p-25});
    const Tensor l = apply<LogSoftmax>(x);
    EXPECT_CLOSE(apply<LogSoftmaxBackward>(dy, l),
                 LogSoftmaxBackward::define(dy.to(float64), l.to(float64)),
                 {.relative = stats + round, .absolute = 64 * stats + 0x1p-25});
  }
}

TEST(Softmax, GradientIsTheDerivativeAlongAnyDimension) {
  const Tensor x = randn({3, 4, 5}, float64);
  for (int dim : {0, 1, -1}) {
    const TensorFunction f = [&](const auto& in) {
      return std::vector{softmax(in[0], dim), log_softmax(in[0], dim), logsumexp(in[0], dim)};
    };
    EXPECT_OK(gradcheck(f, {x}));
    EXPECT_OK(gradgradcheck(f, {x}));
  }
}

TEST(Softmax, RowsSumToOneAndShiftsCancel) {
  const Tensor x = randn({4, 100}, float64);
  EXPECT_CLOSE(softmax(x, -1).sum(-1), ones({4}, float64), {.relative = 1e-14});
  EXPECT_CLOSE(softmax(x + 1000, -1), softmax(x, -1), {.relative = 1e-11});
  EXPECT_CLOSE(softmax(x.t(), 0), softmax(x, 1).t(), {});
}

TEST(Softmax, MaskedAndBrokenRows) {
  const Tensor x =
      tensor({0, -kInf, 0, -kInf, -kInf, -kInf, 1, kNan, 2, kInf, 0, 0}).reshape({4, 3});
  EXPECT_CLOSE(softmax(x, -1),
               tensor({0.5, 0, 0.5, kNan, kNan, kNan, kNan, kNan, kNan, kNan, kNan, kNan})
                   .reshape({4, 3})
                   .slice(0, 0, 4),
               {.relative = 1e-6});
  EXPECT_CLOSE(logsumexp(x, -1).slice(0, 0, 2), tensor({std::log(2.0), -kInf}), {.relative = 1e-6});
}

TEST(Softmax, BitsDoNotDependOnNeighboursOrThreads) {
  const int before = num_threads();
  const Tensor x = randn({100, 777}), y = softmax(x, -1);
  set_num_threads(3);
  EXPECT_SAME_BITS(softmax(x, -1), y);
  EXPECT_SAME_BITS(softmax(x.slice(0, 50, 51), -1), y.slice(0, 50, 51));
  set_num_threads(before);
}

TEST(Softmax, IntegersAreNamed) {
  EXPECT_THROW_MSG(softmax(ones({2}, int64), 0), DTypeError,
                   "softmax: x must be floating, but is int64; convert it with .to(float32)");
}

}  // namespace
}  // namespace norma
