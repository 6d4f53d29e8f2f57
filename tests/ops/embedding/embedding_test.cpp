#include "norma/ops/embedding/embedding.h"

#include "norma/core/parallel.h"
#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"

namespace norma {
namespace {

TEST(Embedding, TakesRowsOfTheTable) {
  const Tensor table = arange(6, float32).reshape({3, 2});
  for (DType index : {int32, int64})
    EXPECT_SAME_BITS(embedding(tensor({2, 0, 2}, index), table),
                     tensor({4, 5, 0, 1, 4, 5}).reshape({3, 2}));
  EXPECT_EQ(embedding(zeros({2, 0}, int64), table).shape(), Shape({2, 0, 2}));
}

TEST(Embedding, GradientIsTheDerivative) {
  const Tensor index = tensor({2, 0, 2, 1, 2}, int64), table = randn({4, 3}, float64);
  EXPECT_OK(gradcheck<Embedding>(index, table));
  EXPECT_OK(gradgradcheck(
      [&](const auto& in) { return std::vector{embedding(index, in[0] * in[0])}; }, {table}));
}

TEST(Embedding, RepeatedRowsSumInOrderOnAnyNumberOfThreads) {
  const int before = num_threads();
  const Tensor index = randint(0, 7, {3000}), dy = randn({3000, 65});
  const Tensor table = randn({7, 65}).requires_grad_();
  Tensor first;
  for (int threads : {1, 2, 5}) {
    set_num_threads(threads);
    const Tensor g = grad({embedding(index, table)}, {table}, {dy})[0];
    if (!first.defined()) first = g;
    EXPECT_SAME_BITS(g, first);
  }
  set_num_threads(before);
}

TEST(Embedding, MistakesAreNamed) {
  EXPECT_THROW_MSG(embedding(tensor({0, 3}, int32), ones({3, 2})), ValueError,
                   "embedding: indices must be below 3, the rows of weight, but index 1 is 3");
  EXPECT_THROW_MSG(embedding(tensor({0}), ones({3, 2})), DTypeError,
                   "embedding: indices must be int32 or int64, but are float32");
  EXPECT_THROW_MSG(embedding(tensor({0}, int64), ones({3})), ShapeError,
                   "embedding: weight must be (vocabulary, width), but is (3,)");
}

}  // namespace
}  // namespace norma
