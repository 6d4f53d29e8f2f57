#pragma once

#include <vector>

#include "norma/nn/data/dataset.h"
#include "norma/nn/data/draws.h"
#include "norma/nn/data/tasks.h"

namespace norma::nn {

/// A question and its answer, the one thing that counts and that follows from the question: the
/// best loss is 0. Row i of the validation part is one that Part::validation draws.
class AnswerTask : public Dataset {
 public:
  int64_t validation_rows() const override { return validation_rows_; }
  std::optional<double> best_loss() const override { return 0; }
  std::optional<double> own_loss(const Batch&) const override { return 0; }
  bool has_answers() const override { return true; }
  Prompt prompt() const override;  ///< the first question of the validation part

 protected:
  AnswerTask(std::string name, Vocabulary vocabulary, int64_t context, int64_t validation_rows);
  virtual void draw(Part part, Draws& draws, Row row) const = 0;
  void draw_row(Part part, uint64_t seed, int64_t step, int64_t i, Row row) const override;
  void validation_row(int64_t i, Row row) const override {
    draw_row(Part::validation, 0, 0, i, row);
  }

  /// Fills `question` with random symbols 0 … n − 1. A tenth of all questions, told by a hash,
  /// validates; the others train.
  static void draw_question(Part part, Draws& draws, int64_t n, std::span<int32_t> question);
  /// Throws ValueError where n^length < 1024: the split by hash needs questions on both sides.
  static void require_many_questions(std::string_view name, int64_t n, int64_t length);

 private:
  int64_t validation_rows_;
};

/// Letters, `|`, the same letters again: whether a model reaches back (length) tokens.
class Copying final : public AnswerTask {
 public:
  explicit Copying(const TaskOptions& options);

 protected:
  void draw(Part part, Draws& draws, Row row) const override;

 private:
  int64_t length_, symbols_;
};

/// Bits, `=` and whether their sum is odd: hard for attention, easy for a state.
class Parity final : public AnswerTask {
 public:
  explicit Parity(const TaskOptions& options);

 protected:
  void draw(Part part, Draws& draws, Row row) const override;

 private:
  int64_t length_;
};

/// a + b = c with c = (a + b) mod p. A fixed shuffle of all p² pairs says which ones train; a model
/// that has the others right has found the rule (grokking; Power et al. 2022, arXiv:2201.02177).
class Modular final : public AnswerTask {
 public:
  explicit Modular(const TaskOptions& options);

 protected:
  void draw(Part part, Draws& draws, Row row) const override;
  void validation_row(int64_t i, Row row) const override;

 private:
  void write(int64_t place, Row row) const;

  int64_t modulus_, training_pairs_;
  std::vector<int32_t> shuffled_;  // pair a · p + b in each place; the first training_pairs_ train
};

}  // namespace norma::nn
