#include "norma/core/capture.h"

#include <cstdlib>

#include "norma/core/random.h"
#include "norma/nn/optimizer.h"
#include "norma/nn/transformer.h"
#include "norma/ops/cross_entropy/cross_entropy.h"
#include "testing/compare.h"

namespace norma::nn {
namespace {

struct Rows {
  Tensor inputs, targets;
};
Rows rows(int64_t step) {
  std::vector<int32_t> in, out;
  for (int64_t i = 0; i < 12; ++i) {
    in.push_back(static_cast<int32_t>((i * 5 + step) % 7));
    out.push_back(static_cast<int32_t>((i * 3 + step) % 7));
  }
  return {from_span<int32_t>(in, Shape{2, 6}), from_span<int32_t>(out, Shape{2, 6})};
}
Transformer small_model(double dropout = 0) {
  manual_seed(3);
  return Transformer({.vocab_size = 7,
                      .context = 6,
                      .n_layers = 2,
                      .n_heads = 2,
                      .d_model = 8,
                      .dropout = dropout,
                      .tie = true});
}

enum class ZeroGrad { first, last };
enum class Loop { plain, captured };

/// The losses and then the weights of six steps.
std::vector<Tensor> train(Transformer model, ZeroGrad order, Loop loop, bool sgd = false) {
  const auto groups = decay_groups(named_parameters(model), 0.1);
  std::unique_ptr<Optimizer> optimizer;
  if (sgd)
    optimizer = std::make_unique<Sgd>(groups, SgdOptions{.momentum = 0.9});
  else
    optimizer = std::make_unique<AdamW>(groups);
  const auto step = [&](const Rows& batch) {
    if (order == ZeroGrad::first) optimizer->zero_grad();
    const Tensor loss = cross_entropy(model(batch.inputs), batch.targets);
    loss.backward();
    const Tensor norm = clip_grad_norm(parameters(model), 1);
    optimizer->step();
    if (order == ZeroGrad::last) optimizer->zero_grad();
    return std::vector{loss, norm};
  };
  auto captured = capture(step);
  std::vector<Tensor> out;
  for (int64_t i = 0; i < 6; ++i) {
    optimizer->set_lr(0.01 * static_cast<double>(1 + i));
    for (const Tensor& t : loop == Loop::plain ? step(rows(i)) : captured(rows(i)))
      out.push_back(t.detach());
  }
  for (const Tensor& p : parameters(model)) out.push_back(p.detach());
  return out;
}

void expect_same(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_SAME_BITS(a[i], b[i]);
}

TEST(CapturedTraining, HasThePlainLoopsBits) {
  for (const bool sgd : {false, true})
    for (const ZeroGrad order : {ZeroGrad::first, ZeroGrad::last})
      expect_same(train(small_model(), order, Loop::captured, sgd),
                  train(small_model(), order, Loop::plain, sgd));
}

TEST(CapturedTraining, WithDropoutIsReproducible) {
  expect_same(train(small_model(0.3), ZeroGrad::first, Loop::captured),
              train(small_model(0.3), ZeroGrad::last, Loop::captured));
}

TEST(CapturedTraining, GathersGradientsInOneCaptureAndStepsInAnother) {
  const auto run = [](bool captured) {
    Transformer model = small_model();
    AdamW adam(decay_groups(named_parameters(model), 0));
    const auto gather = [&](const Rows& batch) {
      const Tensor loss = cross_entropy(model(batch.inputs), batch.targets);
      loss.backward();
      return loss;
    };
    const auto apply = [&] {
      adam.step();
      adam.zero_grad();
    };
    auto gather_captured = capture(gather);
    auto apply_captured = capture(apply);
    std::vector<Tensor> out;
    for (int64_t i = 0; i < 5; ++i) {
      for (int64_t part = 0; part < 2; ++part) {
        const Rows batch = rows(2 * i + part);
        out.push_back((captured ? gather_captured(batch) : gather(batch)).detach());
      }
      captured ? apply_captured() : apply();
    }
    for (const Tensor& p : parameters(model)) out.push_back(p.detach());
    return out;
  };
  expect_same(run(true), run(false));
}

TEST(CapturedTraining, LearningRateGivenInsideIsNamed) {
  Linear linear({.d_in = 2, .d_out = 1});
  Sgd sgd(decay_groups(named_parameters(linear), 0));
  auto step = capture([&](const Tensor& x) {
    linear(x).sum().backward();
    sgd.step(0.5);
    sgd.zero_grad();
  });
  step(ones({1, 2}));
  EXPECT_THROW_MSG(step(ones({1, 2})), GraphError,
                   "step: a captured function must find the learning rate in the optimizer, since "
                   "its replays would repeat a number, but 0.5 came; call set_lr() before it and "
                   "step() inside");
}

/// Compares every call with the second one on a GPU too.
class CapturedTrainingChecks : public ::testing::Test {
 protected:
  CapturedTrainingChecks() { setenv("NORMA_CHECK_CAPTURE", "1", 1); }
  ~CapturedTrainingChecks() override { unsetenv("NORMA_CHECK_CAPTURE"); }
};

TEST_F(CapturedTrainingChecks, ChangedTrainModeIsNamed) {
  Dropout dropout(0.5);
  auto f = capture([&](const Tensor& x) { return dropout(x); });
  for (int i = 0; i < 2; ++i) f(ones({4}));
  eval(dropout);
  EXPECT_THROW_MSG(
      f(ones({4})), GraphError,
      "capture: every call must do what the captured one did, but this one ended where "
      "that went on with dropout; make what decides it an argument");
}

TEST_F(CapturedTrainingChecks, ChangedOptimizerStateIsNamed) {
  Linear linear({.d_in = 2, .d_out = 1});
  AdamW adam(decay_groups(named_parameters(linear), 0));
  auto step = capture([&](const Tensor& x) {
    linear(x).sum().backward();
    adam.step();
    adam.zero_grad();
  });
  for (int i = 0; i < 3; ++i) step(ones({1, 2}));
  adam.load_state(adam.state(), adam.steps(), "here");
  EXPECT_THROW_MSG(step(ones({1, 2})), GraphError,
                   "capture: adamw must read the same tensors at every call, but its input 1, a "
                   "float32 (1, 2), was another one in the captured call; copy_() new values into "
                   "the old tensor, or make it an argument");
}

}  // namespace
}  // namespace norma::nn
