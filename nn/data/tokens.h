#pragma once

#include <memory>
#include <string>

#include "norma/core/file.h"
#include "norma/nn/data/dataset.h"

namespace norma::nn {

struct TokenOptions {
  int64_t context = 64;
  double train_share = 0.9;  ///< of the tokens, from the beginning; the tail is the validation part
  int64_t vocab_size = 0;    ///< 0: the file's largest token + 1, up to a multiple of 64
};

/// A text that another program has cut into tokens: a file of unsigned 16-bit numbers, little
/// endian, such as GPT-2's of nanoGPT's prepare.py. Any size: rows are read where they are wanted.
/// Rows as TextDataset's. A token's symbol is its number.
class TokenDataset final : public Dataset {
 public:
  /// IOError where the file cannot be read or holds half a token; ValueError where it is too short
  /// for the context or a token exceeds the vocabulary.
  TokenDataset(const std::string& path, const TokenOptions& options = {});

  int64_t tokens() const { return file_->size() / 2; }
  int64_t validation_rows() const override;
  /// Of the first million tokens.
  Baselines baselines() const override;
  Prompt prompt() const override { return {.tokens = {0}}; }

 protected:
  void draw_row(Part part, uint64_t seed, int64_t step, int64_t i, Row row) const override;
  void validation_row(int64_t i, Row row) const override;

 private:
  TokenDataset(std::shared_ptr<const InputFile> file, const TokenOptions& options);
  void window(int64_t begin, int64_t end, Row row) const;

  std::shared_ptr<const InputFile> file_;
  int64_t train_tokens_ = 0;
};

}  // namespace norma::nn
