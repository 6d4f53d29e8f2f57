#include <array>
#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include "norma/core/autocast.h"
#include "norma/core/autograd.h"
#include "norma/core/checkpoint.h"
#include "norma/core/random.h"
#include "norma/nn/language_model.h"
#include "norma/nn/optimizer.h"
#include "norma/ops/cross_entropy/cross_entropy.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/embedding/embedding.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/softmax/softmax.h"
#include "testing/compare.h"

namespace norma::nn {
namespace {

TEST(Autocast, EachOpHasItsRule) {
  const Tensor a = randn({3, 4}), b = randn({4, 5}), low = randn({3, 5}).to(bfloat16);
  const Autocast scope(bfloat16);
  EXPECT_EQ(matmul(a, b).dtype(), bfloat16);
  EXPECT_EQ(linear(a, b.t().contiguous()).dtype(), bfloat16);
  EXPECT_EQ((matmul(a, b) + low).dtype(), bfloat16);
  EXPECT_EQ((low + randn({5})).dtype(), float32);
  EXPECT_EQ(log_softmax(low, -1).dtype(), float32);
  EXPECT_EQ(embedding(zeros({2}, int64), b).dtype(), bfloat16);
  EXPECT_EQ((a * 2).dtype(), float32);
  EXPECT_EQ(matmul(a.to(float64), b.to(float64)).dtype(), float64);
  const Autocast off(float32);
  EXPECT_EQ(matmul(a, b).dtype(), float32);
  EXPECT_THROW_MSG(Autocast{int32}, DTypeError,
                   "autocast: the dtype must be bfloat16, float16 or float32, but is int32");
}

TEST(Autocast, WeightsStayFloat32AndSoDoTheirGradients) {
  for (DType dtype : {bfloat16, float16}) {
    const Tensor x = randn({6, 4}).to(dtype), w = randn({5, 4}).requires_grad_(),
                 b = randn({5}).requires_grad_(), dy = randn({6, 5}).to(dtype);
    const Tensor y = linear(x, w, b);
    EXPECT_EQ(y.dtype(), dtype);
    EXPECT_SAME_BITS(y.detach(), linear(x, w.detach().to(dtype), b.detach().to(dtype)));
    y.backward(dy);
    // The gradients are not rounded: exact products, five roundings of their sum.
    const double bound = 6 * 16 * 6 * unit_roundoff(float32);
    EXPECT_EQ(w.grad().dtype(), float32);
    EXPECT_CLOSE(w.grad(), matmul(dy.to(float64).t(), x.to(float64)), {.absolute = bound});
    EXPECT_CLOSE(b.grad(), dy.to(float64).sum(0), {.absolute = bound});
  }
}

TEST(Autocast, ThreadsThatShareAWeightRoundItOnce) {
  const DefaultDevice there(cpu);
  for (int round = 0; round < 50; ++round) {
    const Tensor w = randn({64, 64});
    std::array<Tensor, 3> rounded;
    std::vector<std::thread> threads;
    for (Tensor& r : rounded)
      threads.emplace_back([&] { r = norma::detail::rounded_weight(w, bfloat16); });
    for (std::thread& thread : threads) thread.join();
    for (const Tensor& r : rounded) EXPECT_EQ(r.data(), rounded[0].data());
    EXPECT_SAME_BITS(rounded[0], w.to(bfloat16));
  }
}

TEST(Autocast, AWeightIsRoundedOnceForEachValue) {
  const Tensor w = randn({3, 2});
  const Tensor first = norma::detail::rounded_weight(w, bfloat16);
  EXPECT_SAME_BITS(first, w.to(bfloat16));
  EXPECT_EQ(norma::detail::rounded_weight(w, bfloat16).data(), first.data());
  w.add_(ones({3, 2}));
  EXPECT_SAME_BITS(norma::detail::rounded_weight(w, bfloat16), w.to(bfloat16));
  EXPECT_TRUE(norma::detail::rounded_weight(w, float32).is_same(w));
}

TEST(Autocast, CheckpointsAndDefinitionsRunAsInTheForward) {
  const Tensor x = randn({4, 4}).requires_grad_(), w = randn({4, 4}).requires_grad_();
  const auto layer = [&](const std::vector<Tensor>& in) {
    return std::vector{matmul(in[0], w) * in[0]};
  };
  Tensor plain, again;
  {
    const Autocast scope(bfloat16);
    plain = layer({x})[0].to(float32).sum();
    again = checkpoint(layer, {x})[0].to(float32).sum();
  }
  const Tensor expected = grad({plain}, {x})[0], actual = grad({again}, {x})[0];
  EXPECT_SAME_BITS(actual, expected);
}

TEST(Optimizer, RoundedWeightsFollowTheStep) {
  for (const bool adamw : {true, false}) {
    const Tensor w = randn({9, 4}).requires_grad_();
    const std::vector<ParameterGroup> groups{{{{"w", w}}, 0.1}};
    AdamW adam(groups);
    Sgd sgd(groups, {.momentum = 0.9});
    Optimizer& optimizer = adamw ? static_cast<Optimizer&>(adam) : sgd;
    const Tensor rounded = norma::detail::rounded_weight(w, bfloat16);
    for (int i = 0; i < 3; ++i) {
      w.set_grad(randn({9, 4}));
      optimizer.step(0.1);
      EXPECT_SAME_BITS(rounded, w.detach().to(bfloat16));
      EXPECT_EQ(norma::detail::rounded_weight(w, bfloat16).data(), rounded.data());
    }
  }
}

TEST(Optimizer, ClipGivesTheStepOfScaledGradients) {
  const Tensor a = randn({40}).requires_grad_(), b = a.detach().clone().requires_grad_();
  AdamW first({{{{"a", a}}, 0.1}}), second({{{{"b", b}}, 0.1}});
  for (double limit : {0.5, 1e6}) {
    const Tensor g = randn({40});
    a.set_grad(g), b.set_grad(g.clone());
    const Tensor norm = first.clip(limit);
    EXPECT_SAME_BITS(norm, clip_grad_norm({b}, limit));
    EXPECT_SAME_BITS(a.grad(), g);  // its own gradients stay
    first.step(0.1), second.step(0.1);
    EXPECT_SAME_BITS(a.detach(), b.detach());
  }
}

TEST(Optimizer, LossScalingLeavesOutAStepThatOverflows) {
  const Tensor w = tensor({1, 2, 3}).requires_grad_();
  const Tensor twin = tensor({1, 2, 3}).requires_grad_();
  AdamW scaled({{{{"w", w}}, 0}}), plain({{{{"w", twin}}, 0}});
  scaled.use_loss_scaling(1024);
  const Tensor before = w.detach().clone();
  w.set_grad(tensor({1, std::numeric_limits<double>::infinity(), 0}));
  scaled.step(0.1);
  EXPECT_SAME_BITS(w.detach(), before);
  EXPECT_EQ(scaled.skipped_steps(), 1);
  EXPECT_EQ(scaled.scaled(ones({})).item(), 512);
  for (int i = 0; i < 2; ++i) {
    scaled.zero_grad(), plain.zero_grad();
    scaled.scaled((w * w).sum()).backward();
    (twin * twin).sum().backward();
    // Powers of two change no bit; the skipped step counts for nothing.
    EXPECT_SAME_BITS(scaled.clip(1), plain.clip(1));
    scaled.step(0.1), plain.step(0.1);
    EXPECT_SAME_BITS(w.detach(), twin.detach());
  }
  EXPECT_EQ(scaled.skipped_steps(), 1);
}

TEST(Optimizer, LossScaleGrowsAfterGoodSteps) {
  GradientState s{.loss_scale = 4};
  for (int i = 0; i < 2000; ++i) decide_step(s, 4, 0, true);
  EXPECT_EQ(s.loss_scale, 8);
  EXPECT_EQ(s.norm, 1);
  decide_step(s, 8, 0.5, true);
  EXPECT_EQ(s.factor, 0.5 / 8);
}

TEST(MixedPrecision, AModelLearnsInHalfTypesAsInFloat32) {
  const LanguageModelOptions o{.vocab_size = 11,
                               .context = 8,
                               .n_layers = 2,
                               .n_heads = 2,
                               .d_model = 16,
                               .mlp = MlpKind::gelu_tanh};
  const auto train = [&](DType dtype) {
    manual_seed(3);
    LanguageModel model(o);
    to(model, default_device());
    AdamW adam(decay_groups(named_parameters(model), 0.1));
    if (dtype == float16) adam.use_loss_scaling();
    const Tensor x = randint(0, 11, {4, 8}, int32), y = randint(0, 11, {4, 8}, int32);
    double last = 0;
    for (int i = 0; i < 30; ++i) {
      const Autocast scope(dtype);
      const Tensor loss = cross_entropy(model(x), y);
      EXPECT_EQ(loss.dtype(), float32);
      adam.scaled(loss).backward();
      adam.clip(1);
      adam.step(1e-2);
      adam.zero_grad();
      last = loss.item();
    }
    for (const NamedTensor& p : named_parameters(model)) EXPECT_EQ(p.tensor.dtype(), float32);
    return last;
  };
  // 30 steps carry the roundings of products, 2⁻⁸ and 2⁻¹¹ of a loss that falls from 2.4 below 1.
  const double full = train(float32);
  EXPECT_LT(full, 1.5);
  EXPECT_NEAR(train(bfloat16), full, 0.1);
  EXPECT_NEAR(train(float16), full, 0.05);
}

}  // namespace
}  // namespace norma::nn
