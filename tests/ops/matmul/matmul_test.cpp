#include "norma/ops/matmul/matmul.h"

#include <tuple>

#include "norma/core/parallel.h"
#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/unary.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"

namespace norma {
namespace {

/// Σ_k a_ik b_kj by broadcasting: no matrix product in it.
Tensor by_broadcasting(const Tensor& a, const Tensor& b) {
  return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2);
}

struct Case {
  Shape a, b;
  const char* why;
};
const Case kCases[] = {
    {{2, 3}, {3, 4}, "small"},
    {{1, 1}, {1, 1}, "one element"},
    {{1, 7}, {7, 1}, "an inner product"},
    {{7, 1}, {1, 5}, "an outer product"},
    {{65, 33}, {33, 129}, "odd, several panels"},
    {{3, 50}, {50, 700}, "wide"},
    {{700, 50}, {50, 3}, "tall"},
    {{4, 3, 5}, {4, 5, 2}, "a batch"},
    {{4, 3, 5}, {5, 2}, "one right side for a batch"},
    {{3, 5}, {4, 5, 2}, "one left side for a batch"},
    {{2, 1, 3, 5}, {4, 5, 2}, "broadcast batches"},
    {{0, 3}, {3, 4}, "no rows"},
    {{2, 0}, {0, 4}, "an empty sum"},
    {{0, 2, 3}, {0, 3, 4}, "an empty batch"},
};

template <class T>
class MatmulTest : public ::testing::Test {};
TYPED_TEST_SUITE(MatmulTest, testing::FloatingTypes);

TYPED_TEST(MatmulTest, IsTheSumOfProducts) {
  constexpr DType dtype = dtype_of<TypeParam>;
  for (const auto& [a_shape, b_shape, why] : kCases) {
    SCOPED_TRACE(why);
    const Tensor a = randn(a_shape, dtype), b = randn(b_shape, dtype);
    const Tensor expected = by_broadcasting(a.to(float64), b.to(float64));
    // |a||b| ≤ 7² an addend, k addends, each rounded in the accumulator at most k times.
    const double k = static_cast<double>(a.size(-1));
    EXPECT_CLOSE(matmul(a, b), expected,
                 {.relative = unit_roundoff(dtype),
                  .absolute = k * k * 8 * unit_roundoff(stats_dtype(dtype))});
  }
}

/// On a GPU the second of two products adds to the first one's gradient where it lies, and parts of
/// one tensor get parts of one gradient.
TEST(Matmul, GradientsOfAnInputUsedTwiceAndOfPartsAddUp) {
  for (DType dtype : {float32, bfloat16}) {
    SCOPED_TRACE(to_string(dtype));
    manual_seed(3);
    const Tensor x = randn({6, 33, 80}, dtype).requires_grad_();
    const auto weight = [](const Shape& shape) { return randn(shape).to(bfloat16).to(float32); };
    const Tensor u = weight({24, 80}), v = weight({24, 80}), w = weight({40, 48}),
                 c = weight({40, 32});
    const auto gradient = [&](const Tensor& input) {
      const auto as = [&](const Tensor& t) { return t.to(input.dtype()); };
      const auto parts = split(input, {48, 32}, -1);
      const Tensor h = input * 2;
      const Tensor both = linear(h, as(u)) * linear(h, as(v));
      const Tensor apart = linear(parts[0], as(w)) + linear(parts[1], as(c));
      return grad({both.sum() + apart.sum()}, {input})[0];
    };
    const Tensor wide = x.detach().to(float64).requires_grad_();
    const Tensor got = gradient(x);
    // Numbers of some hundreds are rounded to dtype and summed, in float32 at least, a hundred
    // each.
    const double rounded = 2000 * unit_roundoff(dtype), summed = 20000 * unit_roundoff(float32);
    EXPECT_CLOSE(got, gradient(wide),
                 {.relative = 8 * unit_roundoff(dtype), .absolute = rounded + summed});
    for (int i = 0; i < 3; ++i) EXPECT_SAME_BITS(gradient(x), got);
  }
}

TEST(Matmul, TransposedAndStridedOperandsGiveTheSameProduct) {
  const Tensor a = randn({37, 65}, float64), b = randn({65, 41}, float64);
  const Tensor expected = matmul(a, b);
  const auto close_to = [&](const Tensor& c) {
    EXPECT_CLOSE(c, expected, {.absolute = 65 * 65 * unit_roundoff(float64)});
  };
  const Tensor at = a.t().contiguous().t(), bt = b.t().contiguous().t();
  close_to(matmul(at, b));
  close_to(matmul(a, bt));
  close_to(matmul(at, bt));
  const Tensor wide = concat({a, a}, 1).reshape({37, 2, 65}).select(1, 1);
  close_to(matmul(wide, b));
  const Tensor gaps = stack({a, a}, 2).select(2, 0);  // no stride of 1
  close_to(matmul(gaps, b));
}

/// A weight's gradient: its sums are long enough to be taken in halves, whose sizes differ here.
TEST(Matmul, LongSumsOverDenseRowsGiveTheSameProduct) {
  for (int64_t k : {511, 512, 515, 1031}) {
    SCOPED_TRACE(k);
    const Tensor a = randn({k, 37}, float64), b = randn({k, 41}, float64);
    EXPECT_CLOSE(matmul(a.t(), b), by_broadcasting(a.t(), b),
                 {.absolute = static_cast<double>(k * k) * unit_roundoff(float64)});
  }
}

TEST(Matmul, HeadsReadWhereTheyLie) {
  // (B, T, H, D) seen as (B, H, T, D), as attention does.
  const Tensor x = randn({2, 5, 3, 4}, float64);
  const Tensor q = x.transpose(1, 2);
  EXPECT_CLOSE(matmul(q, q.t()), matmul(q.contiguous(), q.contiguous().t()),
               {.absolute = 64 * unit_roundoff(float64)});
}

TEST(Matmul, BitsDoNotDependOnThreads) {
  const int before = num_threads();
  const Tensor a = randn({130, 70}), b = randn({70, 90}), c = randn({9, 33, 17});
  const Tensor x = randn({600, 50}), dy = randn({600, 130});
  const Tensor ab = matmul(a, b), cc = matmul(c, c.t()), dw = matmul(dy.t(), x);
  for (int threads : {1, 3}) {
    set_num_threads(threads);
    EXPECT_SAME_BITS(matmul(a, b), ab);
    EXPECT_SAME_BITS(matmul(c, c.t()), cc);
    EXPECT_SAME_BITS(matmul(dy.t(), x), dw);
  }
  set_num_threads(before);
}

/// Shares and their last, smaller panels: rows that fill neither tiles nor a share, and more
/// threads than tiles. The scale makes sure that no earlier result lies where a row was left out.
TEST(Matmul, EveryRowIsMadeForAnyNumberOfThreads) {
  if (!default_device().is_cpu()) GTEST_SKIP() << "the processor's kernels";
  const int before = num_threads();
  const Tensor a = randn({130, 70}), b = randn({70, 90}), ab = matmul(a, b);
  for (int threads : {1, 2, 4, 32}) {
    set_num_threads(threads);
    for (int64_t rows : {1, 6, 7, 49, 97, 130}) {
      SCOPED_TRACE(::testing::Message() << rows << " rows on " << threads << " threads");
      EXPECT_SAME_BITS(matmul(a.slice(0, 0, rows) * threads, b), ab.slice(0, 0, rows) * threads);
    }
  }
  set_num_threads(before);
}

TEST(Matmul, GradientIsTheDerivative) {
  for (const auto& [a_shape, b_shape, why] : kCases) {
    if (a_shape.numel() * b_shape.numel() > 2000) continue;
    SCOPED_TRACE(why);
    const Tensor a = randn(a_shape, float64), b = randn(b_shape, float64);
    EXPECT_OK(gradcheck<Matmul>(a, b));
    EXPECT_OK(gradgradcheck<Matmul>(a, b));
  }
}

TEST(Matmul, WrongSizesAreNamed) {
  EXPECT_THROW_MSG(matmul(ones({4, 8}), ones({16, 8})), ShapeError,
                   "matmul: a (4, 8) and b (16, 8) do not chain, 8 ≠ 16; did you mean b.t()?");
  EXPECT_THROW_MSG(matmul(ones({4, 8}), ones({9, 7})), ShapeError,
                   "matmul: a (4, 8) and b (9, 7) do not chain, 8 ≠ 9");
  EXPECT_THROW_MSG(matmul(ones({8}), ones({8, 2})), ShapeError,
                   "matmul: a and b need two dimensions or more, but are (8,) and (8, 2); "
                   "unsqueeze a vector");
}

TEST(Linear, KernelIsItsDefinition) {
  const Tensor w = randn({6, 5}, float64), b = randn({6}, float64);
  for (const Shape& shape : {Shape{5}, Shape{3, 5}, Shape{2, 3, 5}, Shape{0, 5}}) {
    SCOPED_TRACE(to_string(shape));
    const Tensor x = randn(shape, float64);
    EXPECT_CLOSE(linear(x, w, b), Linear::define(x, w, b),
                 {.absolute = 64 * unit_roundoff(float64)});
    EXPECT_CLOSE(linear(x, w), Linear::define(x, w, none),
                 {.absolute = 64 * unit_roundoff(float64)});
  }
}

TEST(Linear, GradientIsTheDerivative) {
  const Tensor w = randn({4, 5}, float64), b = randn({4}, float64);
  for (const Shape& shape : {Shape{5}, Shape{3, 5}, Shape{2, 3, 5}}) {
    const Tensor x = randn(shape, float64);
    EXPECT_OK(gradcheck<Linear>(x, w, b));
    EXPECT_OK(gradgradcheck<Linear>(x, w, b));
    EXPECT_OK(gradcheck<Linear>(x, w, none));
  }
}

TYPED_TEST(MatmulTest, WeightAndBiasGradientsAreTheirDefinition) {
  constexpr DType dtype = dtype_of<TypeParam>;
  for (const auto& [rows, m, k] : {std::tuple{5, 3, 7}, {64, 16, 8}, {129, 40, 24}, {0, 4, 4}}) {
    const Tensor dy = randn({rows, m}, dtype), x = randn({rows, k}, dtype);
    const auto kernel = apply<LinearWeightBackward>(dy, x, {.dtype = dtype});
    const auto formula =
        LinearWeightBackward::define(dy.to(float64), x.to(float64), {.dtype = float64});
    const testing::Closeness bound{
        .relative = unit_roundoff(dtype),
        .absolute = 64. * rows * rows * unit_roundoff(stats_dtype(dtype))};
    EXPECT_TRUE(testing::close(kernel.dw, formula.dw, bound));
    EXPECT_TRUE(testing::close(*kernel.db, *formula.db, bound));
  }
}

TYPED_TEST(MatmulTest, BiasIsAdded) {
  constexpr DType dtype = dtype_of<TypeParam>;
  for (const auto& [rows, m, k] : {std::tuple{5, 3, 7}, {64, 16, 8}, {129, 40, 24}}) {
    const Tensor x = randn({rows, k}, dtype), w = randn({m, k}, dtype), b = randn({m}, dtype);
    // A GPU without a kernel that adds the bias rounds the product, at most 49 k, once more.
    const double sum = 8. * k * k * unit_roundoff(stats_dtype(dtype)),
                 twice = 49. * k * unit_roundoff(dtype);
    EXPECT_CLOSE(linear(x, w, b), Linear::define(x.to(float64), w.to(float64), b.to(float64)),
                 {.relative = unit_roundoff(dtype), .absolute = sum + twice});
  }
}

TEST(Linear, WrongWeightIsNamedWithBothShapes) {
  EXPECT_THROW_MSG(
      linear(ones({2, 8}), ones({8, 4})), ShapeError,
      "linear: w must be (d_out, d_in) for x (…, d_in), but they are (8, 4) and (2, 8)");
}

}  // namespace
}  // namespace norma
