#include "norma/ops/embedding/embedding.h"

#include <string>
#include <utility>
#include <vector>

#include "norma/core/autocast.h"
#include "norma/core/cuda/launches.h"
#include "norma/core/parallel.h"
#include "norma/core/random.h"
#include "norma/core/waiting_launch.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/norm/norm.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"
#include "testing/on_gpu.h"

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

TEST(Embedding, GradientSumsAnyShareOfPlaces) {
  // Small whole numbers, so that every order of a sum gives the same.
  struct Case {
    int64_t rows, places, width;
    const char* why;
  };
  for (const auto& [rows, places, width, why] :
       {Case{7, 3000, 65, "a few rows, often"}, Case{7, 30001, 65, "so often that they are shared"},
        Case{7, 5000, 260, "a few rows, several columns a thread"},
        Case{5000, 33, 4, "many rows, most untouched"}, Case{700, 5000, 130, "runs within a tile"},
        Case{513, 40000, 3, "runs over several tiles"}, Case{600, 5000, 1, "one column"},
        Case{20, 150000, 3, "few rows of more places than many rows may have unsorted"}}) {
    SCOPED_TRACE(why);
    const Tensor index = randint(0, rows, {places});
    const Tensor dy = randint(-3, 4, {places, width}).to(float64);
    const Tensor g = apply<EmbeddingBackward>(index, dy, none, {.rows = rows});
    Tensor expected = zeros({rows, width}, float64, cpu);
    const auto where = index.to_vector<int64_t>();
    const auto values = dy.to_vector<double>();
    for (size_t i = 0; i < where.size(); ++i)
      for (int64_t c = 0; c < width; ++c)
        expected.span<double>()[static_cast<size_t>(where[i] * width + c)] +=
            values[i * static_cast<size_t>(width) + static_cast<size_t>(c)];
    EXPECT_CLOSE(g, expected, {});
    // One row takes every place.
    EXPECT_CLOSE(
        apply<EmbeddingBackward>(full({places}, 1, int32), dy, none, {.rows = rows}).select(0, 1),
        dy.sum(0), {});
  }
}

TEST(Embedding, WithPositionsIsItsDefinition) {
  // Small whole numbers, so that every order of a sum gives the same; 5000 rows: sorted on a GPU.
  for (const int64_t rows : {7, 5000})
    for (const auto& [shape, places, first] : {std::tuple{Shape{3, 5}, int64_t{5}, int64_t{0}},
                                               {Shape{2, 2, 3}, 9, 4},
                                               {Shape{6}, 6, 0},
                                               {Shape{0, 4}, 4, 0},
                                               {Shape{9, 300}, 300, 0},
                                               {Shape{30, 300}, 300, 0}}) {
      SCOPED_TRACE(to_string(shape));
      const auto whole = [](const Shape& s) { return randint(-9, 9, s, int32).to(float32); };
      const Tensor index = randint(0, rows, shape, int32), table = whole({rows, 132});
      const Tensor positions = whole({places, 132});
      const std::vector<Tensor> inputs{table.requires_grad_(), positions.requires_grad_()};
      const PositionedEmbeddingOptions o{.first = first};
      const Tensor y = embedding(index, table, positions, first);
      const Tensor formula = PositionedEmbedding::define(index, table, positions, o);
      EXPECT_SAME_BITS(y.detach(), formula.detach());
      const Tensor dy = whole(y.shape());
      const auto kernel = grad({y}, inputs, {dy}), expected = grad({formula}, inputs, {dy});
      EXPECT_CLOSE(kernel[0], expected[0], {});
      EXPECT_CLOSE(kernel[1], expected[1], {});
    }
}

TEST(Embedding, StreamOfAHalfTypeHasTheBitsOfARoundedOne) {
  for (const DType dtype : {bfloat16, float16}) {
    const Tensor index = randint(0, 7, {3, 5}, int32), dy = randn({3, 5, 24}).to(dtype);
    const std::vector<Tensor> inputs{randn({7, 24}).requires_grad_(),
                                     randn({6, 24}).requires_grad_()};
    const Tensor wide = embedding(index, inputs[0], inputs[1], 1).to(dtype);
    const Tensor y = [&] {
      const Autocast scope(dtype);
      return embedding(index, inputs[0], inputs[1], 1);
    }();
    EXPECT_SAME_BITS(y.detach(), wide.detach());
    const auto grads = grad({y}, inputs, {dy}), expected = grad({wide}, inputs, {dy});
    EXPECT_SAME_BITS(grads[0], expected[0]);
    EXPECT_SAME_BITS(grads[1], expected[1]);
  }
}

TEST(Embedding, WithoutPositionsSoToo) {
  for (const DType dtype : {bfloat16, float16})
    for (const int64_t width : {24, 7}) {
      const Tensor index = randint(0, 7, {3, 5}, int32), dy = randn({3, 5, width}).to(dtype);
      const Tensor table = randn({7, width}).requires_grad_();
      const Tensor wide = embedding(index, table).to(dtype);
      const Tensor y = [&] {
        const Autocast scope(dtype);
        return embedding(index, table);
      }();
      EXPECT_SAME_BITS(y.detach(), wide.detach());
      EXPECT_SAME_BITS(grad({y}, {table}, {dy})[0], grad({wide}, {table}, {dy})[0]);
      // Of the gradient again: dy's own comes back in its dtype.
      const Tensor x = dy.detach().requires_grad_();
      const Tensor sums = apply<EmbeddingBackward>(index, x, none, {.rows = 7, .dtype = float32});
      EXPECT_SAME_BITS(grad({sums}, {x}, {table.detach()})[0], wide.detach());
    }
}

TEST(Embedding, GradientWithPositionsIsTheDerivative) {
  const Tensor index = tensor({2, 0, 2, 1, 2, 3}, int64).reshape({2, 3});
  const Tensor table = randn({4, 3}, float64), positions = randn({5, 3}, float64);
  const PositionedEmbeddingOptions o{.first = 1};
  EXPECT_OK(gradcheck<PositionedEmbedding>(index, table, positions, o));
  EXPECT_OK(gradgradcheck(
      [&](const auto& in) {
        return std::vector{embedding(index, in[0] * in[0], in[1] * in[1], 1)};
      },
      {table, positions}));
}

TEST(Embedding, WrongPositionsAreNamed) {
  const Tensor index = zeros({2, 4}, int64);
  EXPECT_THROW_MSG(embedding(index, ones({3, 2}), ones({5, 2}), 2), ShapeError,
                   "embedding: indices must be (…, T) with first + T up to 5, the rows of "
                   "positions, but first is 2 and they are (2, 4)");
  EXPECT_THROW_MSG(
      embedding(index, ones({3, 2}), ones({5, 3})), ShapeError,
      "embedding: positions must be (places, width) like weight (3, 2), but is (5, 3)");
  EXPECT_THROW_MSG(embedding(index, ones({3, 2}), ones({5, 2}, float64)), DTypeError,
                   "embedding: weight and positions must have one floating dtype, but are float32 "
                   "and float64");
}

TEST(Embedding, MistakesAreNamed) {
  EXPECT_THROW_MSG(embedding(tensor({0, 3}, int32), ones({3, 2})).to_vector<float>(), ValueError,
                   "embedding: indices must be below 3, the rows of weight, but index 1 is 3");
  EXPECT_THROW_MSG(embedding(tensor({0}), ones({3, 2})), DTypeError,
                   "embedding: indices must be int32 or int64, but are float32");
  EXPECT_THROW_MSG(embedding(tensor({0}, int64), ones({3})), ShapeError,
                   "embedding: weight must be (vocabulary, width), but is (3,)");
}

class EmbeddingOnGpu : public testing::OnGpu<> {};

TEST_F(EmbeddingOnGpu, APositionedLookupEndsInItsNorm) {
  manual_seed(1);
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{12, 128}, {3, 36}}) {
    const Tensor tokens = randint(0, 65, {rows, 50}, int64), table = randn({65, width}),
                 positions = randn({60, width});
    const NormInputs inputs{.w = randn({width}), .b = randn({width})};
    for (const NormKind kind : {NormKind::layer, NormKind::rms}) {
      const NormOptions options{.kind = kind, .passes_x = true};
      const Tensor x = embedding(tokens, table, positions, 5);
      const NormResult plain = fused_norm(x, inputs, options);
      Tensor looked_up;
      NormResult ends;
      std::vector<std::string> kernels;
      if constexpr (kBuiltWithCuda) {
        const detail::LaunchListener listener;
        const detail::MayWait scope;
        looked_up = embedding(tokens, table, positions, 5);
        ends = fused_norm(looked_up, inputs, options);
        kernels = listener.kernels();
      }
      EXPECT_EQ(kernels.size(), 1);
      EXPECT_SAME_BITS(looked_up, x);
      EXPECT_SAME_BITS(*ends.h, x);
      const double off = 256 * unit_roundoff(float32);  // a row's sums have another order
      EXPECT_CLOSE(ends.rstd.value, plain.rstd.value, {.relative = off});
      EXPECT_CLOSE(ends.y, plain.y, {.relative = off, .absolute = off * 8});
    }
  }
}

}  // namespace
}  // namespace norma
