#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "norma/core/tensor.h"
#include "norma/nn/data/vocabulary.h"

namespace norma::nn {

/// A target that the loss leaves out: padding, or a question whose answer comes later.
inline constexpr int32_t kIgnore = -1;

/// Rows to learn from, both int32 (rows, context). targets[i, t] is the token that should follow
/// inputs[i, 0 … t], or kIgnore. Padding in inputs is token 0; all its targets are ignored.
/// With places, int32 (n), targets (n) are those alone: of token t of row i at i · context + t.
struct Batch {
  Tensor inputs, targets;
  std::optional<Tensor> places = none;
};

/// The targets of a batch that count.
int64_t counted_tokens(const Batch& batch);

/// The same rows with these targets alone, and their places.
Batch only_counted(const Batch& batch);

enum class Part { train, validation };

/// Losses of a model that knows only frequencies, in nats a counted token: a run that stands at
/// `unigram` has learned nothing but how often each token comes.
struct Baselines {
  double unigram = 0;  ///< H(target)
  double bigram = 0;   ///< H(target | the input in the same place)
};

/// What a sample begins with where the user gives nothing, and the token that ends it.
struct Prompt {
  std::vector<int32_t> tokens;
  std::optional<int32_t> end = none;
};

/// A source of rows. Stateless: a batch is a function of its arguments alone, so that a run goes
/// on from a step number. Implementations give single rows; see nn/data/{grammar,text,tasks}.h.
class Dataset {
 public:
  virtual ~Dataset() = default;

  const std::string& name() const { return name_; }
  int64_t context() const { return context_; }
  const Vocabulary& vocabulary() const { return vocabulary_; }
  int64_t vocab_size() const { return vocabulary_.size(); }
  std::vector<int32_t> encode(std::string_view text) const { return vocabulary_.encode(text); }
  std::string decode(std::span<const int32_t> tokens) const { return vocabulary_.decode(tokens); }

  /// `size` random rows. Row i depends on (part, seed, step, i) alone, so a batch of 8 begins with
  /// the rows of a batch of 4. Throws ValueError for size < 1 or step < 0.
  Batch batch(Part part, uint64_t seed, int64_t step, int64_t size) const;

  /// How many rows the whole validation part has; together they count each of its tokens once.
  virtual int64_t validation_rows() const = 0;
  /// Its rows first … first + size − 1, fewer at its end. Throws ValueError where there are none.
  Batch validation_batch(int64_t first, int64_t size) const;

  /// The least loss a model can have in expectation, in nats a counted token, where it is known
  /// exactly: expected Σ −ln p over expected counted tokens.
  virtual std::optional<double> best_loss() const { return none; }
  /// What the true distribution itself loses on these rows, in nats a counted token, where known.
  /// A model's loss less this on the same rows estimates its distance from the optimum (a
  /// Kullback–Leibler divergence) with far less noise than its loss less best_loss().
  virtual std::optional<double> own_loss(const Batch&) const { return none; }
  /// Counted over the whole validation part, or what an implementation knows better.
  virtual Baselines baselines() const;
  /// Whether the counted targets of a row are one answer, right or wrong as a whole.
  virtual bool has_answers() const { return false; }
  virtual Prompt prompt() const = 0;

 protected:
  Dataset(std::string name, Vocabulary vocabulary, int64_t context);
  Dataset(const Dataset&) = default;
  Dataset& operator=(const Dataset&) = default;

  /// One row of `context` tokens to write, all padding (inputs 0, targets kIgnore) at first.
  struct Row {
    std::span<int32_t> inputs, targets;
  };
  virtual void draw_row(Part part, uint64_t seed, int64_t step, int64_t i, Row row) const = 0;
  virtual void validation_row(int64_t i, Row row) const = 0;

 private:
  template <class F>
  Batch rows(int64_t size, const F& write) const;

  std::string name_;
  Vocabulary vocabulary_;
  int64_t context_;
};

/// The share of rows whose counted targets are all predicted. predictions: (rows, context), any
/// integer dtype; where targets are ignored anything goes. A row without counted targets is right.
/// Throws ShapeError where the shapes differ.
double exact_answers(const Batch& batch, const Tensor& predictions);
/// How many counted targets are predicted; shapes as exact_answers takes them.
double right_tokens(const Batch& batch, const Tensor& predictions);

/// Counts how often each target follows each input.
class PairCounts {
 public:
  void add(int32_t input, int32_t target) {
    ++pairs_[int64_t{input} << 32 | static_cast<uint32_t>(target)];
  }
  Baselines entropies() const;  ///< of what was added; zeros for nothing

 private:
  std::unordered_map<int64_t, int64_t> pairs_;
};

}  // namespace norma::nn
