#include "norma/ops/conv1d/conv1d.h"

#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"

namespace norma {
namespace {

TEST(CausalConv1d, GradientIsTheDerivative) {
  for (auto activation : {Conv1dActivation::identity, Conv1dActivation::silu})
    for (int64_t width : {1, 2, 3, 4, 5}) {
      SCOPED_TRACE(width);
      const Conv1dOptions o{.activation = activation, .final_state = true};
      const Tensor x = randn({2, 5, 3}, float64), w = randn({3, width}, float64),
                   b = randn({3}, float64), state = randn({2, width - 1, 3}, float64);
      EXPECT_OK(gradcheck<CausalConv1d>(x, w, std::optional(b), std::optional(state), o));
      EXPECT_OK(gradgradcheck<CausalConv1d>(x, w, std::optional(b), std::optional(state), o));
      EXPECT_OK(gradcheck<CausalConv1d>(x, w, none, none, o));
    }
}

TEST(CausalConv1d, PiecesOfASequenceGiveTheWhole) {
  const Tensor x = randn({2, 9, 5}), w = randn({5, 4}), b = randn({5});
  const Tensor whole = causal_conv1d(x, w, {.b = b}).y;
  std::optional<Tensor> state;
  for (auto [first, last] : {std::pair{0, 1}, {1, 2}, {2, 7}, {7, 9}}) {
    const auto part =
        causal_conv1d(x.slice(1, first, last), w, {.b = b, .state = state}, {.final_state = true});
    EXPECT_SAME_BITS(part.y, whole.slice(1, first, last).contiguous());
    state = part.state;
  }
}

TEST(CausalConv1d, MistakesAreNamed) {
  const Tensor x = ones({2, 5, 3}), w = ones({3, 4});
  EXPECT_THROW_MSG(causal_conv1d(ones({5, 3}), w), ShapeError,
                   "causal_conv1d: x must be (B, T, C), but is (5, 3)");
  EXPECT_THROW_MSG(causal_conv1d(x, ones({4, 4})), ShapeError,
                   "causal_conv1d: w must be (C, K) with the 3 channels of x (2, 5, 3), but is "
                   "(4, 4)");
  EXPECT_THROW_MSG(causal_conv1d(x, w, {.b = ones({2})}), ShapeError,
                   "causal_conv1d: b must be (3,), the channels of x (2, 5, 3), but is (2,)");
  EXPECT_THROW_MSG(causal_conv1d(x, w, {.state = ones({2, 4, 3})}), ShapeError,
                   "causal_conv1d: state must be (B, K − 1, C) = (2, 3, 3), but is (2, 4, 3)");
  EXPECT_THROW_MSG(causal_conv1d(x, w, {.state = ones({2, 3, 3}, float64)}), DTypeError,
                   "causal_conv1d: state must have x's dtype float32, but is float64");
  EXPECT_THROW_MSG(causal_conv1d(x.to(int32), w), DTypeError,
                   "causal_conv1d: x, w and b must be floating, but x is int32 and w float32");
}

}  // namespace
}  // namespace norma
