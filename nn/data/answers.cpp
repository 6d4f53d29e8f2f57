#include "norma/nn/data/answers.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "norma/core/error.h"

namespace norma::nn {
namespace {

/// Whether a question is among the tenth that validates.
bool validates(std::span<const int32_t> question) {
  uint64_t hash = 0;
  for (int32_t symbol : question)  // a linear congruence (Knuth's MMIX), mixed by Philox below
    hash = (hash + static_cast<uint64_t>(symbol)) * 6364136223846793005u + 1442695040888963407u;
  return philox({}, hash)[0] % 10 == 0;
}

int64_t own_length(const TaskOptions& options, int64_t usual) {
  return options.length == 0 ? usual : options.length;
}

Vocabulary letters(int64_t n) {
  if (n < 1 || n > 26)
    throw ValueError("copying: there must be 1 to 26 symbols, but there are {}", n);
  std::string all = "|";
  for (int64_t i = 0; i < n; ++i) all += static_cast<char>('a' + i);
  return Vocabulary::of_bytes(all);
}

void require_modulus(int64_t modulus) {
  if (modulus < 2 || modulus > 1000)
    throw ValueError("modular: the modulus must be 2 to 1000, but is {}", modulus);
}

Vocabulary numbers(int64_t modulus) {
  require_modulus(modulus);
  std::vector<std::string> words;
  for (int64_t i = 0; i < modulus; ++i) words.push_back(std::to_string(i));
  words.insert(words.end(), {"+", "="});
  return Vocabulary::of_words(std::move(words));
}

int64_t training_pairs(const TaskOptions& options) {
  require_modulus(options.modulus);
  const auto pairs = static_cast<double>(options.modulus * options.modulus);
  const auto training = static_cast<int64_t>(pairs * options.train_share);
  if (!(options.train_share > 0 && options.train_share < 1) || training == 0)
    throw ValueError("modular: train_share must leave pairs on both sides, but is {} of {}",
                     options.train_share, options.modulus * options.modulus);
  return training;
}

}  // namespace

AnswerTask::AnswerTask(std::string name, Vocabulary vocabulary, int64_t context,
                       int64_t validation_rows)
    : Dataset(std::move(name), std::move(vocabulary), context), validation_rows_(validation_rows) {
  if (validation_rows < 1)
    throw ValueError("{}: the validation part must have at least 1 row, but has {}", this->name(),
                     validation_rows);
}

Prompt AnswerTask::prompt() const {
  const Batch batch = validation_batch(0, 1);
  const auto inputs = batch.inputs.span<const int32_t>();
  const auto targets = batch.targets.span<const int32_t>();
  const auto answer =
      std::find_if(targets.begin(), targets.end(), [](int32_t t) { return t != kIgnore; });
  return {.tokens = {inputs.begin(), inputs.begin() + (answer - targets.begin()) + 1}};
}

void AnswerTask::draw_row(Part part, uint64_t seed, int64_t step, int64_t i, Row row) const {
  Draws draws(part, seed, step, i);
  draw(part, draws, row);
}

void AnswerTask::draw_question(Part part, Draws& draws, int64_t n, std::span<int32_t> question) {
  do {
    for (int32_t& symbol : question) symbol = static_cast<int32_t>(draws.below(n));
  } while (validates(question) != (part == Part::validation));
}

void AnswerTask::require_many_questions(std::string_view name, int64_t n, int64_t length) {
  constexpr double kFewest = 1024;  // a tenth of them is none once in 10⁴⁶
  if (length < 1 || std::pow(static_cast<double>(n), static_cast<double>(length)) < kFewest)
    throw ValueError(
        "{}: there must be at least 1024 questions, but {} symbols of {} kinds make "
        "fewer; raise the length",
        name, length, n);
}

Copying::Copying(const TaskOptions& options)
    : AnswerTask("copying", letters(options.symbols), 2 * own_length(options, 16),
                 options.validation_rows),
      length_(own_length(options, 16)),
      symbols_(options.symbols) {
  require_many_questions(name(), symbols_, length_);
}

void Copying::draw(Part part, Draws& draws, Row row) const {
  const auto n = static_cast<size_t>(length_);
  const auto question = row.inputs.first(n), answer = row.targets.subspan(n, n);
  draw_question(part, draws, symbols_, question);  // `|` sorts behind the letters
  row.inputs[n] = vocabulary().token("|");
  std::copy(question.begin(), question.end(), answer.begin());
  std::copy(question.begin(), question.end() - 1, row.inputs.begin() + length_ + 1);
}

Parity::Parity(const TaskOptions& options)
    : AnswerTask("parity", Vocabulary::of_bytes("01="), own_length(options, 12) + 1,
                 options.validation_rows),
      length_(own_length(options, 12)) {
  require_many_questions(name(), 2, length_);
}

void Parity::draw(Part part, Draws& draws, Row row) const {
  const auto question = row.inputs.first(static_cast<size_t>(length_));
  draw_question(part, draws, 2, question);
  row.inputs.back() = vocabulary().token("=");
  row.targets.back() = std::accumulate(question.begin(), question.end(), 0) % 2;
}

Modular::Modular(const TaskOptions& options)
    : AnswerTask("modular", numbers(options.modulus), 4,
                 options.modulus * options.modulus - training_pairs(options)),
      modulus_(options.modulus),
      training_pairs_(training_pairs(options)),
      shuffled_(static_cast<size_t>(modulus_ * modulus_)) {
  std::iota(shuffled_.begin(), shuffled_.end(), 0);
  Draws draws(Part::validation, 0, 0, 0);
  for (auto left = std::ssize(shuffled_); left > 1; --left)  // Fisher and Yates
    std::swap(shuffled_[static_cast<size_t>(left - 1)],
              shuffled_[static_cast<size_t>(draws.below(left))]);
}

void Modular::draw(Part part, Draws& draws, Row row) const {
  write(part == Part::train ? draws.below(training_pairs_)
                            : training_pairs_ + draws.below(validation_rows()),
        row);
}

void Modular::validation_row(int64_t i, Row row) const { write(training_pairs_ + i, row); }

void Modular::write(int64_t place, Row row) const {
  const auto p = static_cast<int32_t>(modulus_);
  const int32_t pair = shuffled_[static_cast<size_t>(place)], a = pair / p, b = pair % p;
  const int32_t question[] = {a, vocabulary().token("+"), b, vocabulary().token("=")};
  std::copy(std::begin(question), std::end(question), row.inputs.begin());
  row.targets.back() = (a + b) % p;
}

}  // namespace norma::nn
