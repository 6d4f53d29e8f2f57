#include "norma/nn/data/text.h"

#include <algorithm>
#include <utility>

#include "norma/core/error.h"
#include "norma/core/file.h"
#include "norma/nn/data/draws.h"

namespace norma::nn {
namespace {

Vocabulary vocabulary_of(std::string_view text, const TextOptions& options) {
  return options.vocabulary.empty() ? Vocabulary::of_bytes(text)
                                    : Vocabulary::parse(options.vocabulary);
}

}  // namespace

TextDataset::TextDataset(std::string name, std::string text, const TextOptions& options)
    : Dataset(std::move(name), vocabulary_of(text, options), options.context),
      text_(std::move(text)) {
  if (!(options.train_share >= 0 && options.train_share < 1))
    throw ValueError("{}: train_share must be from 0 to below 1, but is {}", this->name(),
                     options.train_share);
  if (vocabulary().kind() != Vocabulary::Kind::bytes)
    throw ValueError("{}: the vocabulary of a text must be of bytes, but is of words",
                     this->name());
  train_bytes_ = static_cast<int64_t>(static_cast<double>(text_.size()) * options.train_share);
  token_of_.fill(-1);
  for (int32_t i = 0; i < vocab_size(); ++i)
    token_of_[static_cast<unsigned char>(vocabulary().symbol(i)[0])] = i;
  require_fitting();
}

void TextDataset::require_fitting() const {
  const int64_t bytes = std::ssize(text_);
  if (bytes == 0)
    throw ValueError("{}: a text must hold bytes, but is empty; give another", name());
  if (validation_bytes() < 2 || (train_bytes_ > 0 && train_bytes_ <= context()))
    throw ValueError(
        "{}: a text must have more bytes to train on than the context of {} and 2 to validate on, "
        "but has {} and {}; give a longer text or a shorter context",
        name(), context(), train_bytes_, validation_bytes());
  for (int64_t at = 0; at < bytes; ++at)
    if (token(at) < 0)
      throw ValueError(
          "{}: each byte must be among the {} of the vocabulary, but byte {}, 0x{:02x}, is not; "
          "give a text like the one trained on",
          name(), vocab_size(), at,
          int64_t{static_cast<unsigned char>(text_[static_cast<size_t>(at)])});
}

TextDataset TextDataset::open(const std::string& path, const TextOptions& options) {
  return {path, read_file(path), options};
}

int64_t TextDataset::validation_rows() const { return (validation_bytes() - 2) / context() + 1; }

Baselines TextDataset::baselines() const {
  PairCounts counts;
  for (int64_t at = 1; at < std::ssize(text_); ++at) counts.add(token(at - 1), token(at));
  return counts.entropies();
}

Prompt TextDataset::prompt() const {
  return {.tokens = {vocabulary().contains("\n") ? vocabulary().token("\n") : token(0)}};
}

/// What the bytes from `begin` on give, as far as the row and `end` reach.
void TextDataset::window(int64_t begin, int64_t end, Row row) const {
  const int64_t length = std::min(context(), end - begin - 1);
  for (int64_t t = 0; t < length; ++t) {
    row.inputs[static_cast<size_t>(t)] = token(begin + t);
    row.targets[static_cast<size_t>(t)] = token(begin + t + 1);
  }
}

void TextDataset::draw_row(Part part, uint64_t seed, int64_t step, int64_t i, Row row) const {
  if (part == Part::train && train_bytes_ == 0)
    throw ValueError("{}: a text with train_share 0 has nothing to train on, but a row is wanted",
                     name());
  const int64_t begin = part == Part::train ? 0 : train_bytes_;
  const int64_t end = part == Part::train ? train_bytes_ : std::ssize(text_);
  const int64_t starts = std::max<int64_t>(end - begin - context(), 1);
  window(begin + Draws(part, seed, step, i).below(starts), end, row);
}

void TextDataset::validation_row(int64_t i, Row row) const {
  window(train_bytes_ + i * context(), std::ssize(text_), row);
}

}  // namespace norma::nn
