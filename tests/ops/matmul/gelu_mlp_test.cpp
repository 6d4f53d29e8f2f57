#include "norma/ops/matmul/gelu_mlp.h"

#include "norma/core/random.h"
#include "norma/ops/derivative/derivative.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/matmul/matmul.h"
#include "testing/compare.h"

namespace norma {
namespace {

struct Layer {
  Tensor x, w_in, b_in, w_out, b_out;

  Layer(const Shape& shape, int64_t d_ff, int64_t d_out, DType dtype)
      : x(randn(shape, dtype)),
        w_in((randn({d_ff, shape.back()}, float64) * 0.2).to(dtype)),
        b_in(randn({d_ff}, dtype)),
        w_out((randn({d_out, d_ff}, float64) * 0.2).to(dtype)),
        b_out(randn({d_out}, dtype)) {}
};

template <class T>
class GeluMlpTest : public ::testing::Test {};
TYPED_TEST_SUITE(GeluMlpTest, testing::FloatingTypes);

TYPED_TEST(GeluMlpTest, KernelsAreTheirDefinitionRounded) {
  constexpr DType dtype = dtype_of<TypeParam>;
  for (const auto& [shape, d_ff, d_out] :
       {std::tuple{Shape{3, 5}, 7, 3}, {Shape{2, 40, 32}, 64, 32}, {Shape{0, 4}, 8, 4}}) {
    SCOPED_TRACE(to_string(shape));
    const Layer l(shape, d_ff, d_out, dtype);
    const auto wide = [](const Tensor& t) { return t.to(float64); };
    // u and a, of size up to 10, are rounded to the dtype (u twice where no kernel adds its bias);
    // d_ff products with weights below 1 carry that on, and so does one more layer backward.
    const double round = unit_roundoff(dtype), bound = 3 * 10 * round * static_cast<double>(d_ff);
    const Tensor y = gelu_mlp(l.x, l.w_in, l.b_in, l.w_out, l.b_out);
    EXPECT_CLOSE(
        y, GeluMlp::define(wide(l.x), wide(l.w_in), wide(l.b_in), wide(l.w_out), wide(l.b_out)),
        {.relative = round, .absolute = bound});
    const Tensor dy = randn(y.shape(), dtype);
    const std::vector<Tensor> inputs{l.x.requires_grad_(), l.w_in.requires_grad_(),
                                     l.b_in.requires_grad_(), l.w_out.requires_grad_(),
                                     l.b_out.requires_grad_()};
    const auto kernel = grad({gelu_mlp(l.x, l.w_in, l.b_in, l.w_out, l.b_out)}, inputs, {dy});
    const auto formula =
        GeluMlpBackward::define(wide(dy), wide(l.x.detach()), wide(l.w_in.detach()),
                                wide(l.b_in.detach()), wide(l.w_out.detach()), {}, {}, {});
    const double rows = static_cast<double>(y.numel()) / d_out;
    const double wide_bound = bound * std::max(1.0, rows);
    EXPECT_CLOSE(kernel[0], *formula.dx, {.relative = round, .absolute = bound});
    EXPECT_CLOSE(kernel[1], *formula.dw_in, {.relative = round, .absolute = wide_bound});
    EXPECT_CLOSE(kernel[2], *formula.db_in, {.relative = round, .absolute = wide_bound});
    EXPECT_CLOSE(kernel[3], *formula.dw_out, {.relative = round, .absolute = wide_bound});
    EXPECT_CLOSE(kernel[4], *formula.db_out, {.relative = round, .absolute = wide_bound});
  }
}

TEST(GeluMlp, GradientIsTheDerivative) {
  const Layer l({3, 4}, 5, 2, float64);
  EXPECT_OK(gradcheck<GeluMlp>(l.x, l.w_in, l.b_in, l.w_out, l.b_out));
  EXPECT_OK(gradgradcheck<GeluMlp>(l.x, l.w_in, l.b_in, l.w_out, l.b_out));
  EXPECT_OK(gradcheck<GeluMlp>(l.x, l.w_in, none, l.w_out, none));
}

TEST(GeluMlp, OnTheProcessorEachPanelIsFinishedAsTheWholeWouldBe) {
  // 101 rows: two whole panels and a third that ends within a tile.
  const DefaultDevice there(cpu);
  const Layer l({101, 24}, 40, 16, float32);
  const Tensor w_in = l.w_in.clone().requires_grad_(), dy = randn({101, 16});
  const auto gradient = [&](const Tensor& y) { return grad({y}, {w_in}, {dy})[0]; };
  const Tensor y = gelu_mlp(l.x, w_in, l.b_in, l.w_out, l.b_out);
  const Tensor parts = linear(gelu_tanh(linear(l.x, w_in, l.b_in)), l.w_out, l.b_out);
  EXPECT_SAME_BITS(y, parts);
  EXPECT_SAME_BITS(gradient(y), gradient(parts));
}

TEST(GeluMlp, FrozenWeightsGetNoGradient) {
  const Layer l({3, 4}, 5, 2, float32);
  const Tensor w = l.w_out.requires_grad_();
  gelu_mlp(l.x, l.w_in, l.b_in, w, l.b_out).sum().backward();
  EXPECT_TRUE(w.has_grad());
  EXPECT_FALSE(l.w_in.has_grad());
}

TEST(GeluMlp, WrongWeightsAreNamed) {
  EXPECT_THROW_MSG(gelu_mlp(ones({2, 8}), ones({8, 4}), none, ones({8, 8}), none), ShapeError,
                   "gelu_mlp: w_in must be (d_ff, d) and w_out (d_out, d_ff) for x (…, d), but "
                   "they are (8, 4), (8, 8) and (2, 8)");
  EXPECT_THROW_MSG(
      gelu_mlp(ones({2, 8}), ones({4, 8}), none, ones({8, 4}, float64), none), DTypeError,
      "gelu_mlp: x and the weights must have one floating dtype, but are float32 and float64");
}

}  // namespace
}  // namespace norma
