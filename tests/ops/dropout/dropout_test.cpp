#include "norma/ops/dropout/dropout.h"

#include <cmath>

#include "norma/core/parallel.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"

namespace norma {
namespace {

TEST(Dropout, DropsThatShareAndScalesTheRest) {
  manual_seed(3);
  const int64_t n = 100000;
  const double p = 0.3;
  const Tensor y = dropout(ones({n}), p);
  int64_t dropped = 0;
  for (float v : y.to_vector<float>()) {
    if (v == 0)
      ++dropped;
    else
      EXPECT_EQ(v, static_cast<float>(1 / (1 - p)));
  }
  // Five standard deviations.
  EXPECT_NEAR(static_cast<double>(dropped), n * p, 5 * std::sqrt(n * p * (1 - p)));
}

TEST(Dropout, GradientHasTheSameMaskOnAnyNumberOfThreads) {
  const int before = num_threads();
  const Tensor x = ones({70000}).requires_grad_();
  set_num_threads(1);
  const Tensor y = dropout(x, 0.5);
  set_num_threads(3);
  y.backward(ones({70000}));
  EXPECT_SAME_BITS(x.grad(), y.detach());
  set_num_threads(before);
}

TEST(Dropout, GradientIsTheDerivative) {
  const DropoutOptions o{.p = 0.4, .key = {.key = 5}};
  EXPECT_OK(gradcheck<Dropout>(randn({3, 7}, float64), o));
  EXPECT_OK(gradgradcheck<Dropout>(randn({3, 7}, float64), o));
}

TEST(Dropout, SeedDecidesAndNothingElse) {
  manual_seed(7);
  const Tensor a = dropout(ones({50}), 0.5), b = dropout(ones({50}), 0.5);
  manual_seed(7);
  EXPECT_SAME_BITS(dropout(ones({50}), 0.5), a);
  EXPECT_FALSE(testing::same_bits(a, b));
  EXPECT_SAME_BITS(dropout(ones({2, 25}).t(), 0.5).to(float64).to(float32).reshape({50}), b);
}

TEST(Dropout, ZeroIsTheTensorItself) {
  const Tensor x = ones({3});
  EXPECT_TRUE(dropout(x, 0).is_same(x));
  EXPECT_THROW_MSG(dropout(x, 1), ValueError, "dropout: p must be from 0 to below 1, but is 1");
}

}  // namespace
}  // namespace norma
