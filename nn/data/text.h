#pragma once

#include <array>
#include <string>

#include "norma/nn/data/dataset.h"

namespace norma::nn {

struct TextOptions {
  int64_t context = 64;
  double train_share = 0.9;  ///< of the bytes, from the beginning; the tail is the validation part
  std::string vocabulary = {};  ///< a Vocabulary::text() of bytes; empty: the bytes of the text
};

/// Any text, a byte a token. A random row is a window of context + 1 bytes that begins anywhere in
/// its part. Validation rows are the windows of the validation part one after another, the last
/// one padded: each of its bytes but the first is a target once.
class TextDataset final : public Dataset {
 public:
  /// `name` stands in errors. Throws ValueError where the text is empty, its training part does not
  /// exceed the context, or a byte is not in the given vocabulary. train_share = 0 leaves nothing
  /// to train on: the whole text validates.
  TextDataset(std::string name, std::string text, const TextOptions& options = {});
  /// Of a file, named by its path. IOError where it cannot be read.
  static TextDataset open(const std::string& path, const TextOptions& options = {});

  int64_t train_bytes() const { return train_bytes_; }
  int64_t validation_bytes() const { return std::ssize(text_) - train_bytes_; }
  int64_t validation_rows() const override;
  /// Of the whole text, both parts.
  Baselines baselines() const override;
  Prompt prompt() const override;

 protected:
  void draw_row(Part part, uint64_t seed, int64_t step, int64_t i, Row row) const override;
  void validation_row(int64_t i, Row row) const override;

 private:
  void require_fitting() const;
  int32_t token(int64_t at) const {
    return token_of_[static_cast<unsigned char>(text_[static_cast<size_t>(at)])];
  }
  void window(int64_t begin, int64_t end, Row row) const;

  std::string text_;
  int64_t train_bytes_ = 0;
  std::array<int32_t, 256> token_of_;
};

}  // namespace norma::nn
