#include "norma/core/checkpoint.h"

#include "norma/core/allocator.h"
#include "norma/core/autograd.h"
#include "norma/core/random.h"
#include "norma/ops/derivative/gradcheck.h"
#include "norma/ops/dropout/dropout.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/reduce/reduce.h"
#include "testing/compare.h"

namespace norma {
namespace {

TEST(Checkpoint, GivesTheGradientsOfTheFunctionItself) {
  const TensorFunction f = [](const auto& in) {
    return std::vector{tanh(matmul(in[0], in[1])), in[0] * 2};
  };
  const TensorFunction g = [&](const auto& in) { return checkpoint(f, in); };
  const std::vector<Tensor> in{randn({3, 4}, float64), randn({4, 2}, float64)};
  EXPECT_OK(gradcheck(g, in));
  EXPECT_OK(gradgradcheck(g, in));
}

TEST(Checkpoint, WhatIsReachedByReferenceGetsItsGradientToo) {
  const Tensor x = randn({3, 4}).requires_grad_(), leaf = randn({4, 2}).requires_grad_();
  const Tensor made = leaf * 3;  // has a history of its own
  const TensorFunction f = [&](const auto& in) {
    return std::vector{tanh(matmul(in[0], made) + leaf.sum())};
  };
  const Tensor dy = randn({3, 2});
  const auto plain = grad({f({x})[0]}, {x, leaf}, {dy}, {.retain_graph = true});
  const auto again = grad({checkpoint(f, {x})[0]}, {x, leaf}, {dy});
  EXPECT_SAME_BITS(again[0], plain[0]);
  EXPECT_SAME_BITS(again[1], plain[1]);
}

TEST(Checkpoint, BothRunsDrawTheSameNumbers) {
  const Tensor x = ones({1000}).requires_grad_();
  manual_seed(4);
  const Tensor y =
      checkpoint([](const auto& in) { return std::vector{dropout(in[0], 0.5)}; }, {x})[0];
  dropout(x, 0.5);  // others draw in between
  const GeneratorState before = ambient_generator().state();
  y.backward(ones({1000}));
  EXPECT_SAME_BITS(x.grad(), y.detach());
  EXPECT_EQ(ambient_generator().state(), before);
}

TEST(Checkpoint, KeepsTheInputsAlone) {
  const int64_t n = 1 << 18;
  const Tensor x = randn({n}).requires_grad_();
  const TensorFunction deep = [](const auto& in) {
    Tensor y = in[0];
    for (int i = 0; i < 10; ++i) y = exp(y * 0.1);
    return std::vector{y};
  };
  const int64_t start = memory_stats(default_device()).allocated;
  const Tensor plain = deep({x})[0];
  const int64_t without = memory_stats(default_device()).allocated - start;
  const Tensor kept = checkpoint(deep, {x})[0];
  const int64_t with = memory_stats(default_device()).allocated - start - without;
  EXPECT_GE(without, 10 * 4 * n);
  EXPECT_LE(with, 2 * 4 * n);
  EXPECT_SAME_BITS(kept.detach(), plain.detach());
}

TEST(Checkpoint, ChangedInputIsNamed) {
  const Tensor x = ones({2}), w = ones({2}).requires_grad_();
  const Tensor y = checkpoint([&](const auto& in) { return std::vector{in[0] * w}; }, {x})[0];
  x.fill_(3);
  EXPECT_THROW_MSG(
      y.backward(ones({2})), GraphError,
      "backward: input 0 of checkpoint, of shape (2,), was changed in place; clone it first");
}

TEST(Checkpoint, NothingToDifferentiateIsAPlainCall) {
  EXPECT_FALSE(checkpoint([](const auto& in) { return std::vector{in[0] * 2}; }, {ones({2})})[0]
                   .requires_grad());
}

}  // namespace
}  // namespace norma
