#include "norma/ops/conv1d/conv1d.h"

#include "norma/core/autograd.h"
#include "norma/core/parallel.h"
#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"
#include "testing/golden.h"

namespace norma {
namespace {

struct Case {
  int64_t batch, length, channels, width;
  const char* why;
};
const Case kCases[] = {
    {2, 5, 3, 4, "small"},
    {1, 1, 1, 2, "one element"},
    {2, 2, 3, 4, "shorter than the kernel"},
    {1, 130, 37, 3, "several tiles, odd"},
    {3, 64, 16, 4, "exactly one tile"},
    {1, 3, 515, 4, "several columns of tiles"},
    {2, 4, 3, 1, "one tap"},
    {1, 70, 5, 7, "many taps"},
    {2, 300, 128, 4, "several tiles, whole runs of channels"},
    {1, 90, 8, 6, "six taps"},
    {1, 90, 16, 8, "eight taps"},
    {0, 4, 3, 4, "no batch"},
};

template <class T>
class CausalConv1dTest : public ::testing::Test {};
TYPED_TEST_SUITE(CausalConv1dTest, testing::FloatingTypes);

TYPED_TEST(CausalConv1dTest, KernelIsItsDefinition) {
  constexpr DType dtype = dtype_of<TypeParam>;
  const double round = unit_roundoff(dtype), stats = unit_roundoff(stats_dtype(dtype));
  for (const auto& [batch, length, channels, width, why] : kCases)
    for (auto activation : {Conv1dActivation::identity, Conv1dActivation::silu}) {
      SCOPED_TRACE(why);
      const Conv1dOptions o{.activation = activation, .final_state = true};
      const Shape shape{batch, length, channels}, past{batch, width - 1, channels};
      const auto random = [](const Shape& s, DType d) { return randn(s, float64).to(d); };
      const Tensor x = random(shape, dtype), dy = random(shape, dtype);
      const Tensor w = random({channels, width}, stats_dtype(dtype));
      const Tensor b = random({channels}, stats_dtype(dtype));
      const Tensor state = random(past, dtype), dlast = random(past, dtype);
      const auto exact = [](const Tensor& t) { return t.to(float64); };
      const auto kernel = apply<CausalConv1d>(x, w, b, state, o);
      const auto formula = CausalConv1d::define(exact(x), exact(w), exact(b), exact(state), o);
      // K + 1 terms of size 1 to 4² summed one after another; silu's slope is at most 1.1.
      const double sums = 16 * static_cast<double>(width + 1) * stats;
      EXPECT_CLOSE(kernel.y, formula.y,
                   {.relative = round, .absolute = sums + 0x1p-25 * (round > stats)});
      EXPECT_SAME_BITS(*kernel.state, formula.state->to(dtype));
      const auto grads = apply<CausalConv1dBackward>(dy, dlast, x, w, b, state, o);
      const auto expected = CausalConv1dBackward::define(exact(dy), exact(dlast), exact(x),
                                                         exact(w), exact(b), exact(state), o);
      // A slope's error is 16 roundings of terms up to 4³; dw adds B·T of them.
      const double slopes = 64 * static_cast<double>(width + 1) * stats + 0x1p-25 * (round > stats);
      const double rows = static_cast<double>(batch * length + 1);
      EXPECT_CLOSE(grads.dx, expected.dx, {.relative = round, .absolute = slopes});
      EXPECT_CLOSE(*grads.dstate, *expected.dstate, {.relative = round, .absolute = slopes});
      EXPECT_CLOSE(grads.dw, expected.dw, {.relative = stats, .absolute = rows * slopes});
      EXPECT_CLOSE(*grads.db, *expected.db, {.relative = stats, .absolute = rows * slopes});
    }
}

TEST(CausalConv1d, AnyStridesGiveTheSameBits) {
  const Tensor wide = randn({2, 9, 12}), w = randn({5, 4}), first = randn({2, 5, 9});
  const Tensor part = wide.slice(2, 3, 8), turned = first.transpose(1, 2);
  for (const Tensor& x : {part, turned}) {
    const Tensor dense = x.contiguous(), dy = randn(x.shape());
    const auto gradient = [&](const Tensor& at) {
      const Tensor leaf = at.detach().requires_grad_();
      return grad({causal_conv1d(leaf, w).y}, {leaf}, {dy})[0];
    };
    EXPECT_SAME_BITS(causal_conv1d(x, w).y, causal_conv1d(dense, w).y);
    EXPECT_SAME_BITS(gradient(x), gradient(dense));
  }
}

TEST(CausalConv1d, BitsDoNotDependOnThreads) {
  const int before = num_threads();
  const Tensor x = randn({3, 200, 300}), w = randn({300, 4}), b = randn({300}),
               dy = randn(x.shape());
  std::vector<Tensor> first;
  for (int threads : {1, 3}) {
    set_num_threads(threads);
    const auto g = apply<CausalConv1dBackward>(dy, none, x, w, b, none, Conv1dOptions{});
    const std::vector<Tensor> all{causal_conv1d(x, w, {.b = b}).y, g.dx, g.dw, *g.db};
    if (first.empty()) first = all;
    for (size_t i = 0; i < all.size(); ++i) EXPECT_SAME_BITS(all[i], first[i]);
  }
  set_num_threads(before);
}

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

TEST(CausalConv1d, AgreesWithPyTorch) {
  const testing::Golden g = testing::golden("ops/conv1d/conv1d");
  struct Names {
    std::string name;
    bool bias, state;
  };
  for (const auto& [name, bias, state] : {Names{"plain", false, false},
                                          {"silu", true, false},
                                          {"silu3", true, true},
                                          {"silu2", false, true}}) {
    SCOPED_TRACE(name);
    const auto at = [&, name = name](const char* what) { return g[name + "." + what]; };
    const auto activation = name == "plain" ? Conv1dActivation::identity : Conv1dActivation::silu;
    std::vector<std::pair<const char*, Tensor>> leaves{{"dx", at("x")}, {"dw", at("w")}};
    Conv1dInputs more;
    if (bias) leaves.emplace_back("db", *(more.b = at("b")));
    if (state) leaves.emplace_back("dstate", *(more.state = at("state")));
    std::vector<Tensor> wanted;
    for (auto& [key, leaf] : leaves) wanted.push_back(leaf.requires_grad_());
    const Tensor y = causal_conv1d(wanted[0], wanted[1], more, {.activation = activation}).y;
    EXPECT_CLOSE(y.detach(), at("y"), {.absolute = 1e-14});
    const auto grads = grad({y}, wanted, {at("dy")});
    for (size_t i = 0; i < grads.size(); ++i)
      EXPECT_CLOSE(grads[i], at(leaves[i].first), {.absolute = 1e-13});
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
