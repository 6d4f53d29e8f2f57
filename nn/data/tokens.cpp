#include "norma/nn/data/tokens.h"

#include <algorithm>
#include <bit>
#include <span>
#include <utility>
#include <vector>

#include "norma/core/error.h"
#include "norma/nn/data/draws.h"

namespace norma::nn {
namespace {

static_assert(std::endian::native == std::endian::little, "tokens are read as they lie");

/// Tokens `first` … `first` + n − 1.
std::vector<uint16_t> read(const InputFile& file, int64_t first, int64_t n) {
  std::vector<uint16_t> tokens(static_cast<size_t>(n));
  file.read(2 * first, std::as_writable_bytes(std::span(tokens)));
  return tokens;
}

template <class F>
void for_tokens(const InputFile& file, int64_t n, const F& f) {
  constexpr int64_t kPiece = 1 << 20;
  for (int64_t first = 0; first < n; first += kPiece)
    for (uint16_t token : read(file, first, std::min(kPiece, n - first))) f(int32_t{token});
}

int64_t vocabulary_size(const InputFile& file, const TokenOptions& options) {
  if (file.size() % 2 != 0)
    throw IOError("{}: a file of tokens must have two bytes for each, but has {} bytes",
                  file.path(), file.size());
  int32_t largest = 0;
  for_tokens(file, file.size() / 2, [&](int32_t token) { largest = std::max(largest, token); });
  if (options.vocab_size == 0) return (largest + 64) / 64 * 64;
  if (largest >= options.vocab_size)
    throw ValueError("{}: tokens must be below {}, the vocabulary's size, but one is {}",
                     file.path(), options.vocab_size, largest);
  return options.vocab_size;
}

}  // namespace

TokenDataset::TokenDataset(const std::string& path, const TokenOptions& options)
    : TokenDataset(std::make_shared<const InputFile>(path), options) {}

TokenDataset::TokenDataset(std::shared_ptr<const InputFile> file, const TokenOptions& options)
    : Dataset(file->path(), Vocabulary::of_numbers(vocabulary_size(*file, options)),
              options.context),
      file_(std::move(file)) {
  if (!(options.train_share >= 0 && options.train_share < 1))
    throw ValueError("{}: train_share must be from 0 to below 1, but is {}", name(),
                     options.train_share);
  train_tokens_ = static_cast<int64_t>(static_cast<double>(tokens()) * options.train_share);
  if (tokens() - train_tokens_ < 2 || (train_tokens_ > 0 && train_tokens_ <= context()))
    throw ValueError(
        "{}: there must be more tokens to train on than the context of {} and 2 to validate on, "
        "but there are {} and {}; give a longer file or a shorter context",
        name(), context(), train_tokens_, tokens() - train_tokens_);
}

int64_t TokenDataset::validation_rows() const {
  return (tokens() - train_tokens_ - 2) / context() + 1;
}

Baselines TokenDataset::baselines() const {
  PairCounts counts;
  int32_t last = -1;
  for_tokens(*file_, std::min<int64_t>(tokens(), 1 << 20), [&](int32_t token) {
    if (last >= 0) counts.add(last, token);
    last = token;
  });
  return counts.entropies();
}

/// What the tokens from `begin` on give, as far as the row and `end` reach.
void TokenDataset::window(int64_t begin, int64_t end, Row row) const {
  const int64_t length = std::min(context(), end - begin - 1);
  const std::vector<uint16_t> tokens = read(*file_, begin, length + 1);
  std::copy_n(tokens.begin(), length, row.inputs.begin());
  std::copy_n(tokens.begin() + 1, length, row.targets.begin());
}

void TokenDataset::draw_row(Part part, uint64_t seed, int64_t step, int64_t i, Row row) const {
  if (part == Part::train && train_tokens_ == 0)
    throw ValueError("{}: with train_share 0 there is nothing to train on, but a row is wanted",
                     name());
  const int64_t begin = part == Part::train ? 0 : train_tokens_;
  const int64_t end = part == Part::train ? train_tokens_ : tokens();
  const int64_t starts = std::max<int64_t>(end - begin - context(), 1);
  window(begin + Draws(part, seed, step, i).below(starts), end, row);
}

void TokenDataset::validation_row(int64_t i, Row row) const {
  window(train_tokens_ + i * context(), tokens(), row);
}

}  // namespace norma::nn
