#include "norma/nn/data/pcfg.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <sstream>

#include "norma/core/error.h"

namespace norma::nn {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max() / 4;

/// Bytes of a word in a sentence: itself and the space, or the full stop, behind it.
int64_t bytes_of(const std::string& word) { return std::ssize(word) + 1; }

std::vector<std::string> split_words(std::string_view text) {
  std::istringstream stream{std::string(text)};
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

}  // namespace

/// The lines of a notation, names not yet looked up.
struct Grammar::Notation {
  struct Weighted {
    double weight = 1;
    std::vector<std::string> parts;
  };

  explicit Notation(std::string_view text) {
    std::istringstream stream{std::string(text)};
    for (std::string line; std::getline(stream, line);)
      if (line.find_first_not_of(" \t\r") != line.npos) read_line(line);
    if (names.empty()) throw ValueError("grammar: there must be a symbol, but there is none");
  }

  static Weighted read_alternative(std::string_view symbol, std::string_view text) {
    Weighted out{.parts = split_words(text)};
    if (!out.parts.empty() && out.parts.back().starts_with('(')) {
      const std::string last = out.parts.back();
      const char* end = last.data() + last.size();
      const auto read = std::from_chars(last.data() + 1, end, out.weight);
      if (read.ec != std::errc{} || std::string_view(read.ptr, end) != ")" || !(out.weight > 0) ||
          !std::isfinite(out.weight))
        throw ValueError("grammar: a weight of {} must be a positive number, but is {}", symbol,
                         last);
      out.parts.pop_back();
    }
    if (out.parts.empty())
      throw ValueError("grammar: each alternative of {} must have a part, but one is empty",
                       symbol);
    return out;
  }

  void read_line(const std::string& line) {
    constexpr std::string_view kArrow = "->";
    const size_t arrow = line.find(kArrow);
    const auto left = split_words(std::string_view(line).substr(0, arrow));
    if (arrow == line.npos || left.size() != 1)
      throw ValueError("grammar: a line must read `symbol -> parts (weight) | …`, but is `{}`",
                       line);
    if (!index.emplace(left[0], static_cast<int>(names.size())).second)
      throw ValueError("grammar: a symbol must have one line, but {} has two", left[0]);
    names.push_back(left[0]);
    std::istringstream right(line.substr(arrow + kArrow.size()));
    auto& alternatives = symbols.emplace_back();
    for (std::string text; std::getline(right, text, '|');)
      alternatives.push_back(read_alternative(left[0], text));
    if (line.back() == '|' || alternatives.empty())
      throw ValueError("grammar: each alternative of {} must have a part, but one is empty",
                       left[0]);
  }

  std::vector<std::string> names;
  std::vector<std::vector<Weighted>> symbols;
  std::unordered_map<std::string, int> index;
};

Grammar::Grammar(std::string_view text) {
  const Notation notation(text);
  read(notation);
  require_no_left_recursion(notation);
  const std::vector<int64_t> shortest = shortest_of_symbols();
  for (size_t a = 0; a < shortest.size(); ++a)
    if (shortest[a] >= kNever)
      throw ValueError("grammar: every symbol must come to an end, but {} never does",
                       notation.names[a]);
}

void Grammar::read(const Notation& notation) {
  const auto part_of = [&](const std::string& name) {
    if (const auto found = notation.index.find(name); found != notation.index.end())
      return found->second;
    const auto added = word_index_.emplace(name, static_cast<int>(words_.size()));
    if (added.second) words_.push_back(name);
    return ~added.first->second;
  };
  for (const auto& alternatives : notation.symbols) {
    double sum = 0;
    for (const Notation::Weighted& w : alternatives) sum += w.weight;
    Symbol& symbol = symbols_.emplace_back();
    for (const Notation::Weighted& w : alternatives) {
      Alternative& added = symbol.emplace_back(Alternative{.p = w.weight / sum, .parts = {}});
      for (const std::string& name : w.parts) added.parts.push_back(part_of(name));
    }
  }
}

void Grammar::require_no_left_recursion(const Notation& notation) const {
  const size_t n = symbols_.size();
  std::vector<std::vector<bool>> begins(n, std::vector<bool>(n));  // [a][b]: a may begin with b
  for (size_t a = 0; a < n; ++a)
    for (const Alternative& alternative : symbols_[a])
      if (alternative.parts[0] >= 0) begins[a][static_cast<size_t>(alternative.parts[0])] = true;
  for (size_t via = 0; via < n; ++via)
    for (size_t a = 0; a < n; ++a)
      for (size_t b = 0; b < n; ++b)
        if (begins[a][via] && begins[via][b]) begins[a][b] = true;
  for (size_t a = 0; a < n; ++a)
    if (begins[a][a])
      throw ValueError(
          "grammar: no symbol may begin with itself, but {} does; write it right-recursive",
          notation.names[a]);
}

std::vector<int64_t> Grammar::shortest_of_symbols() const {
  std::vector<int64_t> shortest(symbols_.size(), kNever);
  const auto length = [&](const Alternative& alternative) {
    int64_t sum = 0;
    for (int part : alternative.parts)
      sum = std::min(kNever, sum + (part < 0 ? bytes_of(words_[static_cast<size_t>(~part)])
                                             : shortest[static_cast<size_t>(part)]));
    return sum;
  };
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t a = 0; a < symbols_.size(); ++a) {
      for (const Alternative& alternative : symbols_[a]) {
        const int64_t bytes = length(alternative);
        changed |= bytes < shortest[a];
        shortest[a] = std::min(shortest[a], bytes);
      }
    }
  }
  return shortest;
}

int64_t Grammar::shortest() const { return shortest_of_symbols()[0] + 1; }

std::string Grammar::bytes() const {
  std::string all = " .\n";
  for (const std::string& word : words_) all += word;
  return all;
}

std::string Grammar::draw(Draws& draws, int64_t max_bytes) const {
  for (;;) {
    std::string text;
    if (!derive(0, draws, max_bytes - 1, text)) continue;
    text.back() = '.';  // where the last word's space stands
    return text + '\n';
  }
}

/// Appends what `part` derives; false as soon as the text is longer than max_bytes.
bool Grammar::derive(int part, Draws& draws, int64_t max_bytes, std::string& text) const {
  if (part < 0) {
    text += words_[static_cast<size_t>(~part)];
    text += ' ';
    return std::ssize(text) <= max_bytes;
  }
  const Symbol& symbol = symbols_[static_cast<size_t>(part)];
  size_t chosen = 0;
  for (double u = draws.uniform(); chosen + 1 < symbol.size() && u >= symbol[chosen].p; ++chosen)
    u -= symbol[chosen].p;
  return std::all_of(symbol[chosen].parts.begin(), symbol[chosen].parts.end(),
                     [&](int p) { return derive(p, draws, max_bytes, text); });
}

/// p(symbol derives words i … j − 1) for every end j, remembered by symbol and i.
struct Grammar::Parser {
  Parser(const Grammar& g, std::vector<int> sentence)
      : grammar(g), words(std::move(sentence)), known(g.symbols_.size() * (words.size() + 1)) {}

  using ByEnd = std::vector<double>;

  const ByEnd& ends(int symbol, size_t begin) {
    ByEnd& found = known[static_cast<size_t>(symbol) * (words.size() + 1) + begin];
    if (!found.empty()) return found;
    ByEnd sum(words.size() + 1);
    for (const Alternative& alternative : grammar.symbols_[static_cast<size_t>(symbol)]) {
      ByEnd reached(words.size() + 1);
      reached[begin] = alternative.p;
      for (int part : alternative.parts) reached = advance(reached, part);
      for (size_t j = 0; j < sum.size(); ++j) sum[j] += reached[j];
    }
    return found = std::move(sum);  // `known` never grows, so the reference has stayed good
  }

  ByEnd advance(const ByEnd& reached, int part) {
    ByEnd next(reached.size());
    for (size_t i = 0; i < words.size(); ++i) {
      if (reached[i] == 0) continue;
      if (part < 0) {
        if (words[i] == ~part) next[i + 1] += reached[i];
        continue;
      }
      const ByEnd& inner = ends(part, i);
      for (size_t j = i + 1; j < next.size(); ++j) next[j] += reached[i] * inner[j];
    }
    return next;
  }

  const Grammar& grammar;
  std::vector<int> words;
  std::vector<ByEnd> known;
};

double Grammar::log_probability(std::string_view sentence) const {
  constexpr double kImpossible = -std::numeric_limits<double>::infinity();
  constexpr std::string_view kEnd = ".\n";
  if (!sentence.ends_with(kEnd)) return kImpossible;
  sentence.remove_suffix(kEnd.size());
  std::vector<int> words;
  for (;;) {
    const size_t space = std::min(sentence.find(' '), sentence.size());
    const auto found = word_index_.find(std::string(sentence.substr(0, space)));
    if (found == word_index_.end()) return kImpossible;
    words.push_back(found->second);
    if (space == sentence.size()) break;
    sentence.remove_prefix(space + 1);
  }
  return std::log(Parser(*this, words).ends(0, 0).back());
}

namespace {

/// By number of bytes: Σ p and Σ p ln p over derivations.
struct ByLength {
  std::vector<double> m, s;
  explicit ByLength(int64_t max_bytes)
      : m(static_cast<size_t>(max_bytes) + 1), s(static_cast<size_t>(max_bytes) + 1) {}
  bool operator==(const ByLength&) const = default;
};

ByLength shifted(const ByLength& a, int64_t by) {
  ByLength out(std::ssize(a.m) - 1);
  for (int64_t l = by; l < std::ssize(a.m); ++l) {
    const auto to = static_cast<size_t>(l), from = static_cast<size_t>(l - by);
    out.m[to] = a.m[from];
    out.s[to] = a.s[from];
  }
  return out;
}

/// One derivation after another: p = p₁ p₂, p ln p = (p₁ ln p₁) p₂ + p₁ (p₂ ln p₂).
ByLength joined(const ByLength& a, const ByLength& b) {
  ByLength out(std::ssize(a.m) - 1);
  for (size_t i = 0; i < a.m.size(); ++i) {
    if (a.m[i] == 0) continue;
    for (size_t j = 0; i + j < b.m.size(); ++j) {
      out.m[i + j] += a.m[i] * b.m[j];
      out.s[i + j] += a.s[i] * b.m[j] + a.m[i] * b.s[j];
    }
  }
  return out;
}

}  // namespace

SentenceMoments Grammar::moments(int64_t max_bytes) const {
  const int64_t limit = std::max<int64_t>(max_bytes - 1, 0);  // the newline counts too
  std::vector<ByLength> table(symbols_.size(), ByLength(limit));
  const auto sum_of = [&](const Symbol& symbol) {
    ByLength sum(limit);
    for (const Alternative& alternative : symbol) {
      ByLength row(limit);
      row.m[0] = alternative.p;
      row.s[0] = alternative.p * std::log(alternative.p);
      for (int part : alternative.parts)
        row = part < 0 ? shifted(row, bytes_of(words_[static_cast<size_t>(~part)]))
                       : joined(row, table[static_cast<size_t>(part)]);
      for (size_t l = 0; l < row.m.size(); ++l) sum.m[l] += row.m[l], sum.s[l] += row.s[l];
    }
    return sum;
  };
  // Without left recursion a derivation of ℓ bytes has bounded depth, so this comes to rest, to the
  // bit, after as many rounds as the deepest one that fits.
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t a = symbols_.size(); a-- > 0;) {  // lines tend to name later ones
      ByLength next = sum_of(symbols_[a]);
      changed |= next != table[a];
      table[a] = std::move(next);
    }
  }
  SentenceMoments out;
  double p_ln_p = 0, bytes = 0;
  for (size_t l = 0; l < table[0].m.size(); ++l) {
    out.probability += table[0].m[l];
    p_ln_p += table[0].s[l];
    bytes += table[0].m[l] * static_cast<double>(l + 1);
  }
  if (out.probability == 0) return out;
  out.entropy = std::log(out.probability) - p_ln_p / out.probability;
  out.mean_bytes = bytes / out.probability;
  return out;
}

}  // namespace norma::nn
