#include "norma/nn/data/recall.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "norma/core/error.h"

namespace norma::nn {
namespace {

int64_t or_usual(int64_t value, int64_t usual) { return value == 0 ? usual : value; }

/// The first n lower-case letters and capitals behind them, with `marks`.
Vocabulary letters_and(std::string_view name, std::string marks, int64_t n) {
  if (n < 2 || n > 52)
    throw ValueError("{}: there must be 2 to 52 symbols, but there are {}", name, n);
  for (int64_t i = 0; i < n; ++i) marks += static_cast<char>(i < 26 ? 'a' + i : 'A' + i - 26);
  return Vocabulary::of_bytes(marks);
}

Vocabulary numbers_below(std::string_view name, int64_t n) {
  if (n < 4 || n > 65536)
    throw ValueError("{}: there must be 4 to 65536 symbols, but there are {}", name, n);
  std::vector<std::string> words;
  for (int64_t i = 0; i < n; ++i) words.push_back(std::to_string(i));
  return Vocabulary::of_words(std::move(words));
}

/// `count` different numbers in 0 … n − 1, in increasing order (Floyd's sampling).
std::vector<int64_t> places_of(Draws& draws, int64_t count, int64_t n) {
  std::vector<int64_t> chosen;
  for (int64_t last = n - count; last < n; ++last) {
    const int64_t place = draws.below(last + 1);
    const auto at = std::lower_bound(chosen.begin(), chosen.end(), place);
    if (at == chosen.end() || *at != place)
      chosen.insert(at, place);
    else
      chosen.push_back(last);
  }
  return chosen;
}

}  // namespace

SelectiveCopying::SelectiveCopying(const TaskOptions& o)
    : AnswerTask("selective-copying", letters_and("selective-copying", ".|", o.symbols),
                 or_usual(o.length, 24) + or_usual(o.items, 6), o.validation_rows),
      length_(or_usual(o.length, 24)),
      items_(or_usual(o.items, 6)),
      symbols_(o.symbols) {
  if (items_ > length_)
    throw ValueError("selective-copying: items must fit into the length {}, but are {}", length_,
                     items_);
  require_many_questions(name(), symbols_, items_);
}

void SelectiveCopying::draw(Part part, Draws& draws, Row row) const {
  std::vector<int32_t> items(static_cast<size_t>(items_));
  draw_question(part, draws, symbols_, items);
  std::fill_n(row.inputs.begin(), length_, vocabulary().token("."));
  std::fill(row.inputs.begin() + length_, row.inputs.end(), vocabulary().token("|"));
  const auto places = places_of(draws, items_, length_);
  for (size_t i = 0; i < items.size(); ++i) {
    const int32_t token = vocabulary().token(".") + 1 + items[i];
    row.inputs[static_cast<size_t>(places[i])] = token;
    row.targets[static_cast<size_t>(length_) + i] = token;
  }
}

InductionHeads::InductionHeads(const TaskOptions& o)
    : AnswerTask("induction-heads", letters_and("induction-heads", "$", o.symbols),
                 or_usual(o.length, 48), o.validation_rows),
      symbols_(o.symbols) {
  require_many_questions(name(), symbols_, context());
}

void InductionHeads::draw(Part part, Draws& draws, Row row) const {
  draw_question(part, draws, symbols_, row.inputs);
  const int32_t mark = vocabulary().token("$");
  for (int32_t& token : row.inputs) token += mark + 1;  // `$` sorts before the letters
  const auto place = static_cast<size_t>(draws.below(context() - 2));
  row.inputs[place] = row.inputs.back() = mark;
  row.targets.back() = row.inputs[place + 1];
}

Mqar::Mqar(const TaskOptions& o)
    : AnswerTask("mqar", numbers_below("mqar", o.symbols), or_usual(o.length, 64),
                 o.validation_rows),
      pairs_(or_usual(o.items, 4)) {
  const int64_t places = (context() - 2 * pairs_) / 2;
  if (places < pairs_ || pairs_ >= o.symbols / 2)
    throw ValueError(
        "mqar: {} pairs and their queries must fit into {} tokens and {} symbols; ask for fewer "
        "items",
        pairs_, context(), o.symbols);
  constexpr double kPower = 0.01;  // the reference's: nearly 1 / distance
  for (int64_t i = 1; i <= places; ++i)
    weights_.push_back(std::pow(static_cast<double>(i), kPower - 1));
}

void Mqar::draw(Part, Draws& draws, Row row) const {
  const int64_t half = vocab_size() / 2;
  std::vector<int64_t> keys = places_of(draws, pairs_, half - 1);
  for (auto left = std::ssize(keys); left > 1; --left)
    std::swap(keys[static_cast<size_t>(left - 1)], keys[static_cast<size_t>(draws.below(left))]);
  std::vector<double> weights = weights_;
  double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (size_t i = 0; i < keys.size(); ++i) {
    const auto key = static_cast<int32_t>(keys[i] + 1);
    const auto value = static_cast<int32_t>(half + draws.below(vocab_size() - half));
    row.inputs[2 * i] = key, row.inputs[2 * i + 1] = value;
    double rest = draws.uniform() * total;  // a place that no query has yet
    size_t place = 0;
    while (place + 1 < weights.size() && (weights[place] == 0 || rest >= weights[place]))
      rest -= weights[place++];
    while (weights[place] == 0) --place;  // rounding ran past the last one
    total -= weights[place], weights[place] = 0;
    const size_t at = 2 * keys.size() + 2 * place;
    row.inputs[at] = key, row.targets[at] = value;
  }
}

Addition::Addition(const TaskOptions& o)
    : AnswerTask("addition", Vocabulary::of_bytes("0123456789+="), 3 * or_usual(o.items, 3) + 2,
                 o.validation_rows),
      digits_(or_usual(o.items, 3)) {
  if (digits_ > 18) throw ValueError("addition: at most 18 digits, but they are {}", digits_);
  require_many_questions(name(), 10, 2 * digits_);
}

void Addition::draw(Part part, Draws& draws, Row row) const {
  const auto n = static_cast<size_t>(digits_);
  std::vector<int32_t> question(2 * n);
  draw_question(part, draws, 10, question);
  const int32_t zero = vocabulary().token("0");
  std::string text;
  int64_t sum = 0, a = 0;
  for (size_t i = 0; i < 2 * n; ++i) {
    if (i == n) text += '+', sum = a, a = 0;
    text += static_cast<char>('0' + question[i]);
    a = 10 * a + question[i];
  }
  sum += a;
  text += '=';
  const auto tokens = vocabulary().encode(text);
  std::copy(tokens.begin(), tokens.end(), row.inputs.begin());
  for (size_t i = 0; i <= n; ++i, sum /= 10) {
    const int32_t digit = zero + static_cast<int32_t>(sum % 10);
    row.targets[2 * n + 1 + i] = digit;
    if (i < n) row.inputs[2 * n + 2 + i] = digit;
  }
}

}  // namespace norma::nn
