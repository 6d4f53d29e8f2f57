#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "norma/core/autocast.h"
#include "norma/core/capture.h"
#include "norma/nn/data/dataset.h"
#include "norma/nn/language_model.h"
#include "norma/nn/optimizer.h"
#include "norma/nn/profiler.h"
#include "norma/nn/train_options.h"

namespace norma::nn {

/// The data that options name: a text, a task, or the grammar. A given vocabulary is a text's own
/// otherwise. Throws IOError or ValueError where that cannot be.
std::unique_ptr<Dataset> make_dataset(const TrainOptions& options,
                                      const std::string& vocabulary = {});
LanguageModelOptions model_options(const TrainOptions& options, const Dataset& dataset);
LanguageModelOptions model_options(const TrainOptions& options, int64_t vocab_size,
                                   int64_t context);

/// A loss in nats a counted token.
struct Evaluation {
  double loss = 0;
  double error = 0;                    ///< standard error of the loss, rows taken as independent
  std::optional<double> gap = none;    ///< loss less that of the true distribution on the same rows
  std::optional<double> exact = none;  ///< share of rows answered right, for tasks with answers
  std::optional<double> right = none;  ///< share of counted tokens right, for tasks with answers
  int64_t tokens = 0;
};
/// Of the first `rows` validation rows, all of them for 0.
Evaluation evaluate(LanguageModel& model, const Dataset& dataset, int64_t rows = 0);

/// A number that may still be on its way from the GPU: reading it waits for the step.
struct Later {
  std::vector<Tensor> parts = {};  ///< scalars whose sum it is
  operator double() const;         // NOLINT: reads as the number that it is
};
struct StepReport {
  Later loss = {}, grad_norm = {};
  double lr = 0;
  int64_t tokens = 0;
};

/// A model in the precision of a run: what Autocast and allow_tf32() do while one lives.
class PrecisionScope {
 public:
  /// fp32, tf32, bf16 or fp16
  explicit PrecisionScope(const std::string& precision);
  ~PrecisionScope();
  PrecisionScope(const PrecisionScope&) = delete;
  PrecisionScope& operator=(const PrecisionScope&) = delete;

 private:
  Autocast autocast_;
  bool tf32_before_;
};

/// What is in a checkpoint beside tensors.
struct CheckpointInfo {
  TrainOptions options;
  int64_t step = 0;
  std::string vocabulary, made_by;  ///< made_by: version and processor model
  std::optional<int64_t> best_step = none;
  double best_loss = 0;
};

/// Trains a language model. A run is a function of its options: the same binary on the same
/// processor model gives the same bits for any number of threads, also when it stops and goes on.
class Trainer {
 public:
  /// A fresh run. Throws ValueError for options that no run can have.
  explicit Trainer(const TrainOptions& options);
  Trainer(const Trainer&) = delete;  // nor does it move: its captured functions hold its address
  Trainer& operator=(const Trainer&) = delete;
  /// Goes on from a checkpoint: IOError where it does not fit.
  static std::unique_ptr<Trainer> resume(const std::string& checkpoint);

  /// One optimizer step on the next batch. On a GPU one launch of a captured graph from the third
  /// step on, which nobody waits for until the report is read.
  StepReport step();
  /// A step that is not captured, and what each part of it took.
  void profiled_step(Profiler& profiler);
  int64_t steps_done() const { return step_; }
  bool finished() const { return step_ >= options_.steps; }

  /// Evaluates and remembers the best step so far. `rows` as in evaluate.
  Evaluation validate(int64_t rows = 0);
  std::optional<int64_t> best_step() const { return best_step_; }

  /// Weights, optimizer, random state, position in the data, options: one safetensors file, which
  /// appears whole or not at all.
  void save(const std::string& checkpoint) const;
  /// Who made the checkpoint that was resumed, where that was another version or processor model.
  const std::optional<std::string>& made_elsewhere() const { return made_elsewhere_; }

  const TrainOptions& options() const { return options_; }
  LanguageModel& model() { return *model_; }
  const Dataset& dataset() const { return *dataset_; }
  Device device() const { return device_; }
  /// What the captured graphs of a step hold; empty on the processor.
  std::string graph_nodes() const;

 private:
  Trainer(const TrainOptions& options, const std::string& vocabulary);
  /// What a step does, the parts that are captured: gradients of a part of a batch whose loss is
  /// divided by `counted` tokens, its own where there is none; the optimizer's step; both.
  Tensor gather(const Batch& batch, const std::optional<Tensor>& counted) const;
  Tensor update(Profiler* profiler = nullptr);
  struct Losses {
    Tensor loss, grad_norm;
  };
  Losses gather_and_update(const Batch& batch);
  /// `rows` rows of a batch from `first` on, on the device: of answers what is asked for alone, as
  /// the other places need no logits.
  Batch part_of(const Batch& batch, int64_t first, int64_t rows) const;

  TrainOptions options_;
  std::unique_ptr<Dataset> dataset_;
  std::unique_ptr<LanguageModel> model_;
  std::unique_ptr<Optimizer> optimizer_;
  Schedule schedule_;
  Device device_ = cpu;
  Captured<std::function<Tensor(const Batch&, const Tensor&)>> gather_;
  Captured<std::function<Tensor()>> update_;
  Captured<std::function<Losses(const Batch&)>> gather_and_update_;
  int64_t step_ = 0;
  std::optional<int64_t> best_step_ = none;
  double best_loss_ = 0;
  std::optional<std::string> made_elsewhere_ = none;
};

/// A trained model out of a checkpoint, without what only training needs.
struct LoadedModel {
  CheckpointInfo info;
  std::unique_ptr<LanguageModel> model;
  Vocabulary vocabulary;
};
LoadedModel load_model(const std::string& checkpoint);

}  // namespace norma::nn
