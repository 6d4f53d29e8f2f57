#include "norma/ops/reduce/reduce.h"

#include <cmath>

#include "norma/core/parallel.h"
#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/unary.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"

namespace norma {
namespace {

using testing::kInf;
using testing::kNan;

/// Σ over `dims` in float64, one element after another.
std::vector<double> plain_sum(const Tensor& x, const std::vector<int>& dims) {
  const auto values = x.to_vector<double>();
  const Shape shape = x.shape();
  Shape kept = shape;
  for (int d : dims) kept[d] = 1;
  std::vector<double> sums(static_cast<size_t>(kept.numel()), 0.0);
  const Shape strides = dense_strides(kept);
  for (int64_t i = 0; i < x.numel(); ++i) {
    int64_t rest = i, at = 0;
    for (int d = shape.dim() - 1; d >= 0; --d) {
      if (kept[d] != 1) at += rest % shape[d] * strides[d];
      rest /= shape[d];
    }
    sums[static_cast<size_t>(at)] += values[static_cast<size_t>(i)];
  }
  return sums;
}

struct Case {
  Shape shape;
  std::vector<int> dims;
  const char* why;
};
const Case kCases[] = {
    {{3, 700}, {1}, "rows of several leaves"},
    {{300, 40}, {0}, "columns"},
    {{300, 3}, {0}, "columns too few for tiles"},
    {{2, 130, 17}, {1}, "columns within a batch"},
    {{4, 5, 6}, {0, 2}, "around a kept dimension"},
    {{2, 3, 4}, {0, 1, 2}, "everything"},
    {{100000}, {0}, "more than a task's block"},
    {{5, 1}, {1}, "one element"},
    {{0, 4}, {0}, "nothing to add"},
    {{0, 4}, {1}, "no rows"},
    {{4}, {}, "no dimension"},
};

template <class T>
class SumTest : public ::testing::Test {};
TYPED_TEST_SUITE(SumTest, testing::FloatingTypes);

TYPED_TEST(SumTest, IsTheSumWithinTheBoundOfPairwiseLeaves) {
  constexpr DType dtype = dtype_of<TypeParam>;
  for (const auto& [shape, dims, why] : kCases) {
    SCOPED_TRACE(why);
    const Tensor x = randn(shape, dtype);
    const Tensor y = sum(x, dims);
    int64_t n = 1;
    for (int d : dims) n *= shape[d];
    // Sums of absolute values bound the error: 8 adds a lane, 5 across lanes, log2 of the leaves;
    // columns add up to n/128 + 128 in a row.
    const double adds =
        13 + std::log2(static_cast<double>(n) + 1) + 64 + static_cast<double>(n) / 128;
    const auto magnitude = plain_sum(norma::abs(x.to(float64)), dims);
    double largest = 0;
    for (double m : magnitude) largest = std::max(largest, m);
    EXPECT_CLOSE(y, from_span<double>(plain_sum(x, dims), y.shape()),
                 {.relative = unit_roundoff(dtype),
                  .absolute = adds * unit_roundoff(stats_dtype(dtype)) * largest});
  }
}

TEST(Sum, BitsDoNotDependOnThreadsNorOnOtherRows) {
  const int before = num_threads();
  const Tensor x = randn({70, 1100});
  const Tensor rows = sum(x, {1}), columns = sum(x, {0}), all = x.sum();
  const Tensor flat = randn({1 << 17});
  const Tensor total = flat.sum();
  for (int threads : {1, 2, 5}) {
    set_num_threads(threads);
    EXPECT_SAME_BITS(sum(x, {1}), rows);
    EXPECT_SAME_BITS(sum(x, {0}), columns);
    EXPECT_SAME_BITS(x.sum(), all);
    EXPECT_SAME_BITS(flat.sum(), total);
  }
  EXPECT_SAME_BITS(sum(x.slice(0, 3, 4), {1}), rows.slice(0, 3, 4));
  set_num_threads(before);
}

TEST(Sum, PairwiseKeepsWhatOneAfterAnotherLoses) {
  // 2^25 ones: a running float32 sum stops at 2^24.
  EXPECT_EQ(ones({1}).expand({1 << 25}).sum().item(), 1 << 25);
}

TEST(Sum, IntegersAndBoolsCountInInt64) {
  EXPECT_SAME_BITS(ones({3, 2}, bool_).sum(), scalar(6, int64));
  EXPECT_SAME_BITS(sum(tensor({1, 2, 3}, int32), {0}), scalar(6, int64));
}

TEST(Reduce, KeptDimensionsStayWithSizeOne) {
  const Tensor x = randn({2, 3, 4});
  EXPECT_EQ(x.sum(1, keepdim).shape(), Shape({2, 1, 4}));
  EXPECT_EQ(x.sum(-1).shape(), Shape({2, 3}));
  EXPECT_EQ(mean(x, {0, 2}, keepdim).shape(), Shape({1, 3, 1}));
}

TEST(Reduce, GradientIsTheDerivative) {
  const Tensor x = randn({3, 4, 2}, float64);
  const std::vector<std::vector<int>> all{{0}, {1}, {2}, {0, 2}, {0, 1, 2}};
  for (const auto& dims : all)
    for (KeepDim keep : {KeepDim::no, KeepDim::yes}) {
      const auto check = [&](auto reduce) {
        const TensorFunction f = [&](const auto& in) {
          return std::vector{reduce(in[0], dims, keep)};
        };
        EXPECT_OK(gradcheck(f, {x}));
        EXPECT_OK(gradgradcheck(f, {x}));
      };
      check(sum), check(mean), check(max), check(var);
    }
  const TensorFunction norm_of = [](const auto& in) { return std::vector{norm(in[0])}; };
  EXPECT_OK(gradcheck(norm_of, {x}));
  EXPECT_OK(gradgradcheck(norm_of, {x}));
  const TensorFunction running = [](const auto& in) { return std::vector{cumsum(in[0], 1)}; };
  EXPECT_OK(gradcheck(running, {x}));
  EXPECT_OK(gradgradcheck(running, {x}));
}

TEST(Mean, KernelIsItsDefinition) {
  const Tensor x = randn({5, 33}, float64);
  EXPECT_CLOSE(x.mean(1), Mean::define(x, {.dims = {1}}), {.relative = unit_roundoff(float64)});
  EXPECT_TRUE(std::isnan(zeros({0}).mean().item()));
}

TEST(Max, NanWinsAndEqualOnesShareTheGradient) {
  EXPECT_CLOSE(tensor({1, kNan, 3}).max(), scalar(kNan), {});
  EXPECT_CLOSE(full({3}, -kInf).max(), scalar(-kInf), {});
  const Tensor x = tensor({1, 3, 3}).requires_grad_();
  x.max().backward();
  EXPECT_SAME_BITS(x.grad(), tensor({0, 0.5, 0.5}));
  EXPECT_THROW_MSG(zeros({0}).max(), ValueError,
                   "max: at least one element is needed, but x is (0,)");
}

TEST(Norm, ZeroHasAZeroGradient) {
  const Tensor x = zeros({3}).requires_grad_();
  x.norm().backward();
  EXPECT_SAME_BITS(x.grad(), zeros({3}));
}

TEST(Argmax, FirstOfEqualsAndNanFirst) {
  const Tensor x = tensor({1, 5, 5, 0, kNan, 9}).reshape({2, 3});
  EXPECT_SAME_BITS(argmax(x, 1), tensor({1, 1}, int64));
  EXPECT_SAME_BITS(argmax(x, 0), tensor({0, 1, 1}, int64));
  EXPECT_SAME_BITS(argmax(x.t(), 0), tensor({1, 1}, int64));
}

TEST(Cumsum, RunsAlongItsDimension) {
  const Tensor x = arange(6, float32).reshape({2, 3});
  EXPECT_SAME_BITS(cumsum(x, 1), tensor({0, 1, 3, 3, 7, 12}).reshape({2, 3}));
  EXPECT_SAME_BITS(cumsum(x, 0), tensor({0, 1, 2, 3, 5, 7}).reshape({2, 3}));
  EXPECT_SAME_BITS(apply<Cumsum>(x, {.dim = 1, .reverse = true}),
                   tensor({3, 3, 2, 12, 9, 5}).reshape({2, 3}));
}

TEST(Reduce, WrongDimensionsAreNamed) {
  EXPECT_THROW_MSG(sum(ones({2, 3}), {0, -2}), ShapeError,
                   "sum: a dimension may come once, but -2 came twice");
  EXPECT_THROW_MSG(tensor({1}, int64).mean(), DTypeError,
                   "mean: x must be floating, but is int64; convert it with .to(float32)");
}

}  // namespace
}  // namespace norma
