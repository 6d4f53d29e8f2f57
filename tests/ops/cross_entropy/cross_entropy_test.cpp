#include "norma/ops/cross_entropy/cross_entropy.h"

#include <cmath>

#include "norma/core/autograd.h"
#include "norma/core/parallel.h"
#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"
#include "testing/golden.h"

namespace norma {
namespace {

const CrossEntropyOptions kOptions[] = {{},
                                        {.ignore_index = 2},
                                        {.label_smoothing = 0.1},
                                        {.ignore_index = 0, .label_smoothing = 0.3},
                                        {.reduction = LossReduction::sum},
                                        {.reduction = LossReduction::each}};

template <class T>
class CrossEntropyTest : public ::testing::Test {};
TYPED_TEST_SUITE(CrossEntropyTest, testing::FloatingTypes);

TYPED_TEST(CrossEntropyTest, KernelIsItsDefinition) {
  constexpr DType dtype = dtype_of<TypeParam>;
  const double stats = 64 * unit_roundoff(stats_dtype(dtype));
  for (const CrossEntropyOptions& o : kOptions)
    for (DType index : {int32, int64}) {
      const Tensor x = (randn({4, 3, 45}, float64) * 2).to(dtype),
                   t = randint(0, 45, {4, 3}, index);
      const auto kernel = apply<CrossEntropy>(x, t, o);
      const auto formula = CrossEntropy::define(x.to(float64), t, o);
      EXPECT_CLOSE(kernel.losses, formula.losses, {.relative = stats, .absolute = stats});
      EXPECT_CLOSE(kernel.lse.value, formula.lse.value, {.relative = stats, .absolute = stats});
      const Tensor d = randn({4, 3}, stats_dtype(dtype));
      const CrossEntropyBackwardOptions backward{o.ignore_index, o.label_smoothing};
      EXPECT_CLOSE(apply<CrossEntropyBackward>(d, x, t, kernel.lse.value, backward),
                   CrossEntropyBackward::define(d.to(float64), x.to(float64), t, {}, backward),
                   {.relative = unit_roundoff(dtype) + stats, .absolute = 4 * stats + 0x1p-25});
    }
}

TYPED_TEST(CrossEntropyTest, LongRowsToo) {
  constexpr DType dtype = dtype_of<TypeParam>;
  const double stats = 64 * unit_roundoff(stats_dtype(dtype));
  const CrossEntropyOptions o{.label_smoothing = 0.1};
  for (int64_t classes : {1024, 1025, 5003}) {
    SCOPED_TRACE(classes);
    const Tensor x = (randn({3, classes}, float64) * 2).to(dtype), t = randint(0, classes, {3});
    const auto kernel = apply<CrossEntropy>(x, t, o);
    const auto formula = CrossEntropy::define(x.to(float64), t, o);
    EXPECT_CLOSE(kernel.losses, formula.losses, {.relative = stats, .absolute = stats});
    EXPECT_CLOSE(kernel.lse.value, formula.lse.value, {.relative = stats, .absolute = stats});
    const Tensor d = randn({3}, stats_dtype(dtype));
    const CrossEntropyBackwardOptions backward{o.ignore_index, o.label_smoothing};
    EXPECT_CLOSE(apply<CrossEntropyBackward>(d, x, t, kernel.lse.value, backward),
                 CrossEntropyBackward::define(d.to(float64), x.to(float64), t, {}, backward),
                 {.relative = unit_roundoff(dtype) + stats, .absolute = 4 * stats + 0x1p-25});
  }
}

TYPED_TEST(CrossEntropyTest, MeanIsItsDefinition) {
  constexpr DType dtype = dtype_of<TypeParam>;
  const double stats = 64 * unit_roundoff(stats_dtype(dtype));
  for (const int64_t rows : {1, 12, 3000}) {
    const CrossEntropyOptions o{.ignore_index = 2, .label_smoothing = 0.1};
    const Tensor x = (randn({rows, 9}, float64) * 2).to(dtype), t = randint(0, 9, {rows}, int32);
    const auto kernel = apply<MeanCrossEntropy>(x, t, o);
    const auto formula = MeanCrossEntropy::define(x.to(float64), t, o);
    EXPECT_CLOSE(kernel.loss, formula.loss, {.relative = stats, .absolute = stats});
    EXPECT_CLOSE(kernel.share.value, formula.share.value, {.relative = stats});
    EXPECT_CLOSE(kernel.lse.value, formula.lse.value, {.relative = stats, .absolute = stats});
    // The two ways to a mean's gradient have the same bits: one rounds dloss · share first too.
    const Tensor d = randn({}, stats_dtype(dtype));
    const CrossEntropyBackwardOptions backward{o.ignore_index, o.label_smoothing};
    EXPECT_SAME_BITS(
        apply<MeanCrossEntropyBackward>(d, x, t, kernel.lse.value, kernel.share.value, backward),
        apply<CrossEntropyBackward>((d * kernel.share.value).expand({rows}), x, t, kernel.lse.value,
                                    backward));
  }
}

TEST(CrossEntropy, GradientIsTheDerivative) {
  const Tensor x = randn({5, 7}, float64), t = tensor({0, 2, 6, 2, 3}, int64);
  for (const CrossEntropyOptions& o : kOptions) {
    const TensorFunction f = [&](const auto& in) {
      return std::vector{cross_entropy(in[0], t, o)};
    };
    EXPECT_OK(gradcheck(f, {x}));
    EXPECT_OK(gradgradcheck(f, {x}));
  }
}

TEST(CrossEntropy, GradientTakesTheLogitsMemoryAtTheirLastUse) {
  const Tensor w = randn({5, 9}).requires_grad_(), t = tensor({0, 2, 8, 2, 3}, int64);
  const auto dw = [&](const BackwardOptions& o, bool holds_logits) {
    Tensor logits = w * 2, seen;
    const void* memory = logits.data();
    logits.register_hook([&](const Tensor& g) {
      seen = g;
      return std::optional<Tensor>();
    });
    const Tensor values = logits.detach().clone(), loss = cross_entropy(logits, t);
    const Tensor held = holds_logits ? logits : Tensor();
    logits = Tensor();
    w.clear_grad();
    backward({loss}, {}, o);
    EXPECT_EQ(seen.data() == memory, !holds_logits && !o.retain_graph);
    if (holds_logits) {
      EXPECT_SAME_BITS(held.detach(), values);
    }
    return w.grad().clone();
  };
  const Tensor expected = dw({}, true);
  EXPECT_SAME_BITS(dw({}, false), expected);
  EXPECT_SAME_BITS(dw({.retain_graph = true}, false), expected);
}

/// Of a leaf through logits that are given away, where the loss counts `factor` times.
struct GivenAway {
  Tensor loss, dx;
};
GivenAway given_away(const Tensor& leaf, const Tensor& targets, CrossEntropyOptions o,
                     bool in_place, double factor, int sweeps = 1) {
  o.in_place = in_place;
  const Tensor x = leaf.detach().clone().requires_grad_();
  const Tensor loss = cross_entropy(x * 2, targets, o), counted = loss * factor;
  for (int i = 1; i < sweeps; ++i) backward({counted}, {}, {.retain_graph = true});
  counted.backward();
  return {loss.detach(), x.grad()};
}

TEST(CrossEntropy, GradientOfTheForwardPassHasTheSameBits) {
  // More rows than blocks, rows that begin a second and a fifth part, and the longest.
  constexpr struct {
    int64_t rows, cols;
    const char* why;
  } kSizes[] = {{700, 1032, "turns"}, {3, 5000, "parts"}, {3, 50688, "longest"}};
  for (const auto& [rows, cols, why] : kSizes)
    for (const CrossEntropyOptions& o : kOptions) {
      if (o.reduction != LossReduction::mean) continue;
      SCOPED_TRACE(why);
      const Tensor x = (randn({rows, cols}) * 3).to(bfloat16), t = randint(0, cols, {rows}, int32);
      const auto apart = [&](double factor) { return given_away(x, t, o, false, factor); };
      const auto at_once = [&](double factor, int sweeps) {
        return given_away(x, t, o, true, factor, sweeps);
      };
      EXPECT_SAME_BITS(at_once(1, 1).loss, apart(1).loss);
      EXPECT_SAME_BITS(at_once(1, 1).dx, apart(1).dx);
      EXPECT_SAME_BITS(at_once(0.25, 1).dx, apart(0.25).dx);  // a power of two rounds alike
      EXPECT_SAME_BITS(at_once(1, 2).dx, apart(2).dx);
      // The gradient is rounded before the factor too.
      EXPECT_CLOSE(at_once(3, 1).dx, apart(3).dx, {.relative = 3 * unit_roundoff(bfloat16)});
    }
}

TEST(CrossEntropy, GradientOfTheForwardPassHasNoSecondDerivative) {
  const Tensor x = randn({3, 2048}).to(bfloat16).requires_grad_();
  const auto sweep = [&] {
    const Tensor loss =
        cross_entropy(x * 2, tensor({0, 9, 2047}, int64).to(x.device()), {.in_place = true});
    backward({loss}, {}, {.create_graph = true});
  };
  if (x.device().is_cpu())
    EXPECT_NO_THROW(sweep());
  else
    EXPECT_THROW_MSG(sweep(), GraphError,
                     "cross_entropy: the logits became their gradient, which leaves no second "
                     "derivative; leave in_place out");
}

TEST(CrossEntropy, LogitsThatWereGivenAwayAreMissed) {
  const Tensor x = randn({3, 2048}).to(bfloat16).requires_grad_(), logits = x * 2;
  const Tensor squares = logits.square().sum();
  cross_entropy(logits, tensor({0, 9, 2047}, int64).to(x.device()), {.in_place = true});
  if (x.device().is_cpu())
    EXPECT_NO_THROW(squares.backward());
  else
    EXPECT_THROW(squares.backward(), GraphError);
}

TEST(CrossEntropy, IgnoredTargetsLoseNothing) {
  const Tensor x = randn({3, 4}).requires_grad_();
  const Tensor some = cross_entropy(x, tensor({1, -1, 2}, int64));
  EXPECT_CLOSE(some,
               (cross_entropy(x.slice(0, 0, 1), tensor({1}, int64)) +
                cross_entropy(x.slice(0, 2, 3), tensor({2}, int64))) *
                   0.5,
               {.relative = 1e-6});
  some.backward();
  EXPECT_SAME_BITS(x.grad().slice(0, 1, 2), zeros({1, 4}));
  EXPECT_EQ(cross_entropy(x, full({3}, -1, int32)).item(), 0);
}

TEST(CrossEntropy, UniformLogitsLoseTheirEntropy) {
  EXPECT_CLOSE(cross_entropy(zeros({3, 50}, float64), tensor({0, 9, 49}, int64)),
               scalar(std::log(50.0), float64), {.relative = 1e-15});
}

TEST(CrossEntropy, AgreesWithPyTorch) {
  const testing::Golden g = testing::golden("ops/cross_entropy/cross_entropy");
  for (const char* name : {"plain", "smoothed"}) {
    const auto at = [&](const char* what) { return g[std::string(name) + "." + what]; };
    const Tensor x = at("logits").requires_grad_();
    const Tensor loss = cross_entropy(
        x, at("targets"), {.label_smoothing = std::string_view(name) == "plain" ? 0 : 0.2});
    loss.backward();
    EXPECT_CLOSE(loss.detach(), at("loss"), {.relative = 1e-14});
    EXPECT_CLOSE(x.grad(), at("dlogits"), {.relative = 1e-13, .absolute = 1e-15});
  }
}

TEST(CrossEntropy, MistakesAreNamed) {
  EXPECT_THROW_MSG(cross_entropy(ones({2, 3}), ones({2})), DTypeError,
                   "cross_entropy: targets must be int32 or int64 class indices, but are float32");
  EXPECT_THROW_MSG(cross_entropy(ones({2, 3}), zeros({3}, int64)), ShapeError,
                   "cross_entropy: targets must be (2,), the logits (2, 3) without their classes, "
                   "but are (3,)");
  EXPECT_THROW_MSG(cross_entropy(ones({2, 3}), tensor({0, 3}, int64)).item(), ValueError,
                   "cross_entropy: targets must be below 3, the number of classes, or -1 to be "
                   "ignored, but target 1 is 3");
  EXPECT_THROW_MSG(cross_entropy(ones({2, 3}), zeros({2}, int64), {.label_smoothing = 2}),
                   ValueError, "cross_entropy: label_smoothing must be from 0 to 1, but is 2");
}

}  // namespace
}  // namespace norma
