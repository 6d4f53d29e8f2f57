#include "norma/ops/view/view.h"

#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"
#include "testing/compare.h"

namespace norma {
namespace {

bool shares(const Tensor& a, const Tensor& b) { return a.storage().get() == b.storage().get(); }

TEST(View, SharesItsStorageWhereStridesAllow) {
  const Tensor x = arange(24, float32).reshape({2, 3, 4});
  EXPECT_TRUE(shares(x.reshape({6, 4}), x));
  EXPECT_TRUE(shares(x.permute({2, 0, 1}), x));
  EXPECT_TRUE(shares(x.slice(1, 0, 3, 2), x));
  EXPECT_TRUE(shares(x.expand({5, 2, 3, 4}), x));
  EXPECT_TRUE(shares(x.t().unsqueeze(0), x));
  EXPECT_TRUE(shares(x.transpose(0, 1).reshape({3, 2, 2, 2}), x));
  EXPECT_FALSE(shares(x.t().reshape({24}), x));
}

TEST(View, ElementsAreWhereTheIndexSays) {
  const Tensor x = arange(6, float32).reshape({2, 3});
  EXPECT_SAME_BITS(x.t(), tensor({0, 3, 1, 4, 2, 5}).reshape({3, 2}));
  EXPECT_SAME_BITS(x.t().reshape({2, 3}), tensor({0, 3, 1, 4, 2, 5}).reshape({2, 3}));
  EXPECT_SAME_BITS(x.slice(1, -2, 3), tensor({1, 2, 4, 5}).reshape({2, 2}));
  EXPECT_SAME_BITS(x.select(0, -1), tensor({3, 4, 5}));
  EXPECT_SAME_BITS(x.reshape({3, -1}), tensor({0, 1, 2, 3, 4, 5}).reshape({3, 2}));
  EXPECT_SAME_BITS(x.select(1, 1).expand({2, 2}), tensor({1, 4, 1, 4}).reshape({2, 2}));
}

TEST(View, ReshapeOfAnyStridesKeepsTheOrder) {
  const Tensor x = randn({4, 3, 6, 5});
  const std::vector<Tensor> views{x,
                                  x.permute({1, 0, 2, 3}),
                                  x.permute({3, 2, 1, 0}),
                                  x.slice(1, 0, 2),
                                  x.slice(2, 1, 6, 2),
                                  x.select(3, 2).unsqueeze(3).expand({4, 3, 6, 2})};
  for (const Tensor& v : views) {
    const int64_t n = v.numel();
    for (const Shape& shape :
         {Shape{n}, Shape{2, n / 2}, Shape{n / 6, 1, 6}, Shape{4, -1}, v.shape()})
      EXPECT_SAME_BITS(v.reshape(shape), v.contiguous().reshape(shape));
  }
}

TEST(View, GradientIsTheDerivative) {
  const std::vector<Tensor> in{randn({2, 3, 4}, float64)};
  const auto check = [&](auto view) {
    const TensorFunction f = [&](const auto& x) { return std::vector<Tensor>{view(x[0])}; };
    EXPECT_OK(gradcheck(f, in));
    EXPECT_OK(
        gradgradcheck([&](const auto& x) { return std::vector<Tensor>{view(x[0] * x[0])}; }, in));
  };
  check([](const Tensor& x) { return x.reshape({4, 6}); });
  check([](const Tensor& x) { return x.t().reshape({24}); });
  check([](const Tensor& x) { return x.permute({2, 0, 1}); });
  check([](const Tensor& x) { return x.slice(2, 1, 4, 2); });
  check([](const Tensor& x) { return x.select(1, 2); });
  check([](const Tensor& x) { return x.unsqueeze(1).expand({2, 5, 3, 4}); });
  check([](const Tensor& x) { return x.clone(); });
  check([](const Tensor& x) { return x.slice(0, 0, 1).squeeze(0); });
  check([](const Tensor& x) { return concat({x, x.slice(1, 0, 1), x}, 1); });
  check([](const Tensor& x) { return stack({x, x}, -1); });
  check([](const Tensor& x) { return split(x, {1, 3}, 2)[1]; });
  check([](const Tensor& x) { return chunk(x, 2, 2)[1]; });
  check([](const Tensor& x) {
    const auto parts = split(x, {1, 2, 1}, 2);
    return parts[0] * parts[2];
  });
}

TEST(To, RoundsThereAndTheGradientBack) {
  const Tensor x = tensor({1.0, 1.0 + 0x1p-9}).requires_grad_();
  Tensor y = x.to(bfloat16);
  EXPECT_SAME_BITS(y.detach().to(float32), tensor({1, 1}));
  y.backward(tensor({1, 2}, bfloat16));
  EXPECT_SAME_BITS(x.grad(), tensor({1, 2}));
  EXPECT_TRUE(x.to(float32).is_same(x));
}

TEST(View, MistakesAreNamed) {
  const Tensor x = ones({2, 3});
  EXPECT_THROW_MSG(x.reshape({4, 2}), ShapeError,
                   "reshape: the new shape must hold the 6 elements of (2, 3), but is (4, 2)");
  EXPECT_THROW_MSG(x.reshape({-1, -1}), ShapeError,
                   "reshape: the new shape must hold the 6 elements of (2, 3), but is (-1, -1)");
  EXPECT_THROW_MSG(x.permute({0, 0}), ShapeError,
                   "permute: each of the 2 dimensions must come once, but the order is (0, 0)");
  EXPECT_THROW_MSG(x.slice(1, 2, 4), ShapeError,
                   "slice: must lie within dimension 1 of (2, 3), with a step of 1 or more, but is "
                   "2:4:1");
  EXPECT_THROW_MSG(x.select(0, 2), ShapeError,
                   "select: the index must be below 2, dimension 0 of (2, 3), but is 2");
  EXPECT_THROW_MSG(x.expand({2, 6}), ShapeError,
                   "expand: shapes must broadcast, but (2, 3) and (2, 6) differ in dimension 1");
  EXPECT_THROW_MSG(x.squeeze(0), ShapeError,
                   "squeeze: dimension 0 must have size 1, but the shape is (2, 3)");
  EXPECT_THROW_MSG(concat({x, ones({2, 4})}, 0), ShapeError,
                   "concat: tensors may differ in dimension 0 only, but are (2, 3) and (2, 4)");
  EXPECT_THROW_MSG(split(x, {1, 1}, 1), ShapeError,
                   "split: sizes must add up to 3, dimension 1 of (2, 3), but add up to 2");
  EXPECT_THROW_MSG(chunk(x, 2, 1), ShapeError, "chunk: 2 must divide 3, dimension 1 of (2, 3)");
}

}  // namespace
}  // namespace norma
