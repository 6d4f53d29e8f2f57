#include "norma/nn/trainer.h"

#include <cstdlib>
#include <filesystem>

#include "norma/core/parallel.h"
#include "norma/core/safetensors.h"
#include "testing/compare.h"

namespace norma::nn {
namespace {

class TrainerTest : public ::testing::Test {
 protected:
  TrainerTest() {
    std::string name = ::testing::TempDir() + "norma-XXXXXX";
    path = mkdtemp(name.data());
  }
  ~TrainerTest() override { std::filesystem::remove_all(path); }
  std::string path;
};

TrainOptions tiny_run() {
  return {.task = "copying",
          .n_layers = 1,
          .n_heads = 2,
          .d_model = 16,
          .steps = 6,
          .batch = 4,
          .lr = 1e-2,
          .warmup = 2,
          .device = to_string(default_device())};
}

TEST_F(TrainerTest, ResumedRunEqualsTheUninterruptedOneToTheLastBit) {
  const int before = num_threads();
  TrainOptions o = tiny_run();
  o.dropout = 0.2;
  for (const char* optimizer : {"adamw", "sgd"}) {
    o.optimizer = optimizer;
    set_num_threads(1);
    std::vector<double> whole;
    Trainer uninterrupted(o);
    while (!uninterrupted.finished()) whole.push_back(uninterrupted.step().loss);
    Trainer first(o);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(first.step().loss, whole[static_cast<size_t>(i)]);
    first.validate(8);  // evaluating more often changes nothing
    first.save(path + "/c.safetensors");
    set_num_threads(3);
    const auto second = Trainer::resume(path + "/c.safetensors");
    EXPECT_EQ(second->steps_done(), 3);
    EXPECT_FALSE(second->made_elsewhere());
    for (size_t i = 3; i < 6; ++i) EXPECT_EQ(second->step().loss, whole[i]);
    const auto a = state_dict(uninterrupted.model()), b = state_dict(second->model());
    for (size_t i = 0; i < a.size(); ++i)
      EXPECT_SAME_BITS(a[i].tensor.detach(), b[i].tensor.detach());
  }
  set_num_threads(before);
}

TEST_F(TrainerTest, AccumulatedPartsGiveTheGradientOfTheWholeBatch) {
  TrainOptions o = tiny_run();
  Trainer whole(o);
  o.accumulate = 4;
  Trainer parts(o);
  for (int i = 0; i < 3; ++i) {
    const StepReport a = whole.step(), b = parts.step();
    EXPECT_NEAR(a.loss, b.loss, 1e-5);
    EXPECT_NEAR(a.grad_norm, b.grad_norm, 1e-4 * a.grad_norm);
  }
}

TEST_F(TrainerTest, AWideStreamRoundsLessAndLearnsTheSame) {
  TrainOptions o = tiny_run();
  o.precision = "bf16";
  Trainer narrow(o);
  o.wide_stream = true;
  Trainer wide(o);
  bool differs = false;
  for (int i = 0; i < 5; ++i) {
    const double a = narrow.step().loss, b = wide.step().loss;
    EXPECT_NEAR(a, b, 0.01);
    differs |= a != b;
  }
  EXPECT_TRUE(differs);
}

TEST_F(TrainerTest, LearnsToCopy) {
  TrainOptions o = tiny_run();
  o.d_model = 32, o.n_heads = 4, o.n_layers = 2, o.batch = 32, o.steps = 400, o.lr = 3e-3;
  o.positions = "rotary";
  Trainer trainer(o);
  const double before = trainer.validate(64).loss;
  while (!trainer.finished()) trainer.step();
  const Evaluation e = trainer.validate(256);
  EXPECT_LT(e.loss, 0.5 * before);
  EXPECT_GT(e.tokens, 0);
}

TEST_F(TrainerTest, TrainOnlyMovesNothingElse) {
  TrainOptions o = tiny_run();
  o.train_only = "*ln_*";
  Trainer trainer(o);
  const Tensor frozen = trainer.model().wte.weight.detach().clone();
  trainer.step();
  EXPECT_SAME_BITS(trainer.model().wte.weight.detach(), frozen);
}

TEST_F(TrainerTest, LoadedModelPredictsWhatWasTrained) {
  Trainer trainer(tiny_run());
  trainer.step();
  trainer.save(path + "/c.safetensors");
  LoadedModel loaded = load_model(path + "/c.safetensors");
  EXPECT_EQ(loaded.info.step, 1);
  EXPECT_EQ(evaluate(*loaded.model, trainer.dataset(), 64).loss,
            evaluate(trainer.model(), trainer.dataset(), 64).loss);
}

TEST_F(TrainerTest, EvaluationLeavesTheModelInTheModeItFound) {
  Trainer trainer(tiny_run());
  for (const bool training : {false, true}) {
    train(trainer.model(), training);
    trainer.validate(8);
    EXPECT_EQ(trainer.model().dropout.training, training);
  }
}

static_assert(!std::is_move_constructible_v<Trainer>, "its captured functions hold its address");

TEST_F(TrainerTest, OtherFilesAreNoCheckpoints) {
  save_safetensors(path + "/x.safetensors", {{"a", ones({2}, float32, cpu)}});
  EXPECT_THROW_MSG(load_model(path + "/x.safetensors"), IOError,
                   path + "/x.safetensors: must be a checkpoint of norma, but has no step");
  save_safetensors(path + "/y.safetensors", {}, {{"step", "1"}});
  EXPECT_THROW_MSG(load_model(path + "/y.safetensors"), IOError,
                   path + "/y.safetensors: must be a checkpoint of norma, but has no options");
  EXPECT_THROW_MSG(
      Trainer({.task = "copying", .context = 7}), ValueError,
      "context: the task copying takes 32 tokens a row, but context is 7; leave it out");
}

}  // namespace
}  // namespace norma::nn
