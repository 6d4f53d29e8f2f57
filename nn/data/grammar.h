#pragma once

#include <string>
#include <string_view>

#include "norma/nn/data/dataset.h"
#include "norma/nn/data/pcfg.h"

namespace norma::nn {

struct GrammarOptions {
  int64_t context = 128;           ///< in bytes; a longer sentence is drawn again
  int64_t validation_rows = 1024;  ///< sentences in the validation part
  std::string notation = {};       ///< of the Grammar; empty: english_grammar()
};

/// A small English: subject and verb agree, also across a prepositional phrase ("the dog near the
/// kings sleeps."). 32 words; unambiguous.
std::string_view english_grammar();

/// Text whose best possible loss is known: one whole sentence a row, over bytes. inputs are a
/// newline and the sentence, targets the sentence and a newline, the rest is padding. Sentences
/// longer than the context are drawn again, and every probability is divided by that of fitting.
/// Throws ValueError where fewer than one sentence in a hundred fits.
class GrammarDataset final : public Dataset {
 public:
  explicit GrammarDataset(const GrammarOptions& options = {});

  int64_t validation_rows() const override { return options_.validation_rows; }
  /// Exact: the entropy of a sentence over its mean number of bytes, newline included.
  std::optional<double> best_loss() const override;
  /// Σ −ln p(sentence) over the bytes of the batch's sentences; infinite where a row is none.
  std::optional<double> own_loss(const Batch& batch) const override;
  Prompt prompt() const override;

  /// ln of the probability with which a row is this sentence, its full stop and newline included;
  /// −∞ where it never is.
  double log_probability(std::string_view sentence) const;
  const Grammar& grammar() const { return grammar_; }
  const SentenceMoments& moments() const { return moments_; }  ///< of the sentences that fit

 protected:
  void draw_row(Part part, uint64_t seed, int64_t step, int64_t i, Row row) const override;
  void validation_row(int64_t i, Row row) const override;

 private:
  GrammarDataset(const GrammarOptions& options, Grammar grammar);

  GrammarOptions options_;
  Grammar grammar_;
  SentenceMoments moments_;
};

}  // namespace norma::nn
