#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace norma::nn {

/// The symbols that tokens 0, 1, 2, … stand for: single bytes written one after another, or words
/// written with spaces between; or their own numbers, for tokens whose meaning another program
/// knows. Its text() goes into a checkpoint, so that sampling needs no data.
class Vocabulary {
 public:
  enum class Kind { bytes, words, numbers };

  Vocabulary() = default;  ///< no symbols
  /// The bytes of `sample`, each once, in ascending order.
  static Vocabulary of_bytes(std::string_view sample);
  /// These words in this order. Throws ValueError for one that is empty, holds a space or repeats.
  static Vocabulary of_words(std::vector<std::string> words);
  /// 0 … n − 1.
  static Vocabulary of_numbers(int64_t n);
  /// What text() wrote. Throws ValueError where it is something else.
  static Vocabulary parse(std::string_view text);

  /// One line of printable ASCII: `bytes:\n !abc` with \n, \t, \\ and \xHH for the rest, or
  /// `words:0 1 + =` or `numbers:50304`.
  std::string text() const;
  Kind kind() const { return kind_; }
  int64_t size() const { return static_cast<int64_t>(symbols_.size()); }
  const std::string& symbol(int32_t token) const;  ///< throws ValueError outside 0 … size − 1
  bool contains(std::string_view symbol) const { return tokens_.contains(std::string(symbol)); }
  int32_t token(std::string_view symbol) const;  ///< throws ValueError for an unknown symbol

  /// The tokens of a text. Throws ValueError naming the first symbol that is not among these.
  std::vector<int32_t> encode(std::string_view text) const;
  /// The text of tokens; negative ones (ignored targets) are left out.
  std::string decode(std::span<const int32_t> tokens) const;

  bool operator==(const Vocabulary& other) const {
    return kind_ == other.kind_ && symbols_ == other.symbols_;
  }

 private:
  Vocabulary(Kind kind, std::vector<std::string> symbols);
  std::vector<int32_t> encode_bytes(std::string_view text) const;
  std::vector<int32_t> encode_words(std::string_view text) const;

  Kind kind_ = Kind::bytes;
  std::vector<std::string> symbols_;
  std::unordered_map<std::string, int32_t> tokens_;
};

}  // namespace norma::nn
