#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "norma/nn/data/draws.h"

namespace norma::nn {

/// Of the sentences that take at most so many bytes.
struct SentenceMoments {
  double probability = 0;  ///< that a sentence of the grammar is one of them
  double entropy = 0;      ///< in nats, of a sentence drawn among them alone
  double mean_bytes = 0;   ///< likewise; 0 where there are none
};

/// A probabilistic context-free grammar over words. A sentence is written with spaces between its
/// words, a full stop and a newline; both count as bytes.
///
/// Its notation has one symbol a line, the first one being the sentence. A word is a part that has
/// no line. A weight in parentheses ends an alternative (default 1); a symbol's weights are divided
/// by their sum:
///   S  -> NP sleeps (.4) | NP sees NP (.6)
///   NP -> the dog | the cat
class Grammar {
 public:
  /// Throws ValueError where the notation is broken, a symbol begins with itself (write it
  /// right-recursive) or no sentence ever ends.
  explicit Grammar(std::string_view notation);

  /// A sentence of at most max_bytes, drawn anew until it fits: p(sentence) / p(it fits). There
  /// must be one: shortest() ≤ max_bytes.
  std::string draw(Draws& draws, int64_t max_bytes) const;
  /// ln p(sentence), summed over its derivations; −∞ for what the grammar does not make.
  double log_probability(std::string_view sentence) const;
  /// Exact up to rounding, by dynamic programming over lengths:
  ///   m[A, ℓ] = Σ p(d),  s[A, ℓ] = Σ p(d) ln p(d)  over the derivations d of A with ℓ bytes.
  /// The entropy is that of derivations, so it is the sentences' where the grammar is unambiguous.
  SentenceMoments moments(int64_t max_bytes) const;
  int64_t shortest() const;   ///< bytes of the shortest sentence
  std::string bytes() const;  ///< every byte that a sentence may hold

 private:
  struct Alternative {
    double p;
    std::vector<int> parts;  // a symbol's index, or ~index of a word
  };
  using Symbol = std::vector<Alternative>;
  struct Notation;
  struct Parser;

  void read(const Notation& notation);
  void require_no_left_recursion(const Notation& notation) const;
  std::vector<int64_t> shortest_of_symbols() const;
  bool derive(int part, Draws& draws, int64_t max_bytes, std::string& text) const;

  std::vector<Symbol> symbols_;
  std::vector<std::string> words_;
  std::unordered_map<std::string, int> word_index_;
};

}  // namespace norma::nn
