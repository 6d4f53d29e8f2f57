#include "norma/ops/index/index.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"

namespace norma {
namespace {

TEST(Gather, TakesWhatIndexSaysAlongAnyDimension) {
  const Tensor x = arange(6, float32).reshape({2, 3});
  EXPECT_SAME_BITS(gather(x, 1, tensor({2, 0, 1, 1}, int64).reshape({2, 2})),
                   tensor({2, 0, 4, 4}).reshape({2, 2}));
  EXPECT_SAME_BITS(gather(x, 0, tensor({1, 0, 1}, int32).reshape({1, 3})),
                   tensor({3, 1, 5}).reshape({1, 3}));
}

TEST(Gather, GradientIsTheDerivative) {
  const Tensor index = tensor({2, 0, 2, 1, 1, 1}, int64).reshape({2, 3});
  for (int dim : {0, 1}) {
    const Tensor i = dim == 0 ? index.t() : index;
    const TensorFunction f = [&](const auto& in) {
      return std::vector{gather(in[0] * in[0], dim, i)};
    };
    EXPECT_OK(gradcheck(f, {dim == 0 ? randn({4, 2}, float64) : randn({2, 4}, float64)}));
    EXPECT_OK(gradgradcheck(f, {dim == 0 ? randn({4, 2}, float64) : randn({2, 4}, float64)}));
  }
}

TEST(ScatterAdd, AddsInOrderAndHasItsGradient) {
  const Tensor index = tensor({2, 2, 0}, int64).reshape({1, 3});
  EXPECT_SAME_BITS(scatter_add(ones({1, 4}), 1, index, tensor({1, 2, 3}).reshape({1, 3})),
                   tensor({4, 1, 4, 1}).reshape({1, 4}));
  const TensorFunction f = [&](const auto& in) {
    return std::vector{scatter_add(in[0], 1, index, in[1] * in[1])};
  };
  EXPECT_OK(gradcheck(f, {randn({1, 4}, float64), randn({1, 3}, float64)}));
  EXPECT_OK(gradgradcheck(f, {randn({1, 4}, float64), randn({1, 3}, float64)}));
}

TEST(ScatterAdd, LongRowsAddEachSource) {
  const Tensor index = randint(0, 50, {2, 5000}), src = randint(-3, 4, {2, 5000}).to(float64);
  std::vector<double> expected(100);
  const auto at = index.to_vector<int64_t>();
  const auto from = src.to_vector<double>();
  for (size_t i = 0; i < at.size(); ++i)
    expected[i / 5000 * 50 + static_cast<size_t>(at[i])] += from[i];
  EXPECT_EQ(scatter_add(zeros({2, 50}, float64), 1, index, src).to_vector<double>(), expected);
}

TEST(TopK, ManyOfALongRowAreSorted) {
  const Tensor x = randint(0, 500, {3, 2000}).to(float32);  // many equals
  for (int64_t k : {3, 64, 65, 2000}) {
    const TopK top = topk(x, k);
    const auto values = x.to_vector<float>();
    const auto chosen = top.indices.to_vector<int64_t>();
    for (size_t row = 0; row < 3; ++row) {
      std::vector<int64_t> order(2000);
      for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
      std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        return values[row * 2000 + static_cast<size_t>(a)] >
               values[row * 2000 + static_cast<size_t>(b)];
      });
      for (size_t i = 0; i < static_cast<size_t>(k); ++i)
        ASSERT_EQ(chosen[row * static_cast<size_t>(k) + i], order[i])
            << k << " " << row << " " << i;
    }
  }
}

TEST(TopK, LargestFirstAndTheFirstOfEquals) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const TopK top = topk(tensor({3, 9, 9, 1, 0, nan, 5, 5}).reshape({2, 4}), 2);
  EXPECT_SAME_BITS(top.indices, tensor({1, 2, 1, 2}, int64).reshape({2, 2}));
  EXPECT_CLOSE(top.values, tensor({9, 9, nan, 5}).reshape({2, 2}), {});
  const TensorFunction f = [](const auto& in) { return std::vector{topk(in[0], 2).values}; };
  EXPECT_OK(gradcheck(f, {randn({3, 5}, float64)}));
}

TEST(Index, MistakesAreNamed) {
  EXPECT_THROW_MSG(
      gather(ones({2, 3}), 1, tensor({0, 3}, int64).reshape({2, 1})).to_vector<float>(), ValueError,
      "gather: index must be below 3, but in row 1 element 0 is 3");
  EXPECT_THROW_MSG(gather(ones({2, 3}), 1, zeros({3, 1}, int64)), ShapeError,
                   "gather: index must have the sizes of x (2, 3) but in the dimension itself, but "
                   "is (3, 1)");
  EXPECT_THROW_MSG(topk(ones({2, 3}), 4), ValueError,
                   "topk: k must be from 0 to the last dimension of x (2, 3), but is 4");
}

}  // namespace
}  // namespace norma
