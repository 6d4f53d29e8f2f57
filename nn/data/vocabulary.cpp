#include "norma/nn/data/vocabulary.h"

#include <algorithm>
#include <array>
#include <bitset>
#include <charconv>
#include <optional>
#include <utility>

#include "norma/core/error.h"

namespace norma::nn {
namespace {

constexpr std::string_view kBytes = "bytes:", kWords = "words:", kNumbers = "numbers:",
                           kHex = "0123456789abcdef";

std::string escaped(std::string_view text) {
  std::string out;
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '\\') {
      out += "\\\\";
    } else if (byte < 0x20 || byte >= 0x7F) {
      out += "\\x";
      out += kHex[byte / 16];
      out += kHex[byte % 16];
    } else {
      out += c;
    }
  }
  return out;
}

[[noreturn]] void throw_bad_text(std::string_view text) {
  throw ValueError(
      "vocabulary: the text must read like `bytes:ab\\n`, `words:a b` or `numbers:9`, but is {}",
      escaped(text));
}

/// The byte that begins text, which is cut behind it; none for a broken escape.
std::optional<char> take_byte(std::string_view& text) {
  const auto cut = [&](size_t n) { text.remove_prefix(n); };
  if (text[0] != '\\') {
    const char c = text[0];
    cut(1);
    return c;
  }
  const char kind = text.size() > 1 ? text[1] : '\0';
  if (kind == 'x' && text.size() > 3) {
    const size_t high = kHex.find(text[2]), low = kHex.find(text[3]);
    if (high == kHex.npos || low == kHex.npos) return {};
    cut(4);
    return static_cast<char>(high * 16 + low);
  }
  cut(std::min<size_t>(2, text.size()));
  switch (kind) {
    case 'n':
      return '\n';
    case 't':
      return '\t';
    case '\\':
      return '\\';
    default:
      return {};
  }
}

std::string unescaped(std::string_view text) {
  std::string out;
  for (std::string_view rest = text; !rest.empty();) {
    const auto byte = take_byte(rest);
    if (!byte) throw_bad_text(text);
    out += *byte;
  }
  return out;
}

/// Calls word(text, position) for each run of characters other than space and newline.
template <class F>
void for_words(std::string_view text, const F& word) {
  constexpr std::string_view kSpace = " \n";
  for (size_t at = text.find_first_not_of(kSpace); at != text.npos;) {
    const size_t end = std::min(text.find_first_of(kSpace, at), text.size());
    word(text.substr(at, end - at), at);
    at = text.find_first_not_of(kSpace, end);
  }
}

}  // namespace

Vocabulary::Vocabulary(Kind kind, std::vector<std::string> symbols)
    : kind_(kind), symbols_(std::move(symbols)) {
  for (const std::string& symbol : symbols_) {
    if (!tokens_.emplace(symbol, static_cast<int32_t>(tokens_.size())).second)
      throw ValueError("vocabulary: each symbol must stand once, but '{}' stands twice",
                       escaped(symbol));
  }
}

Vocabulary Vocabulary::of_bytes(std::string_view sample) {
  std::bitset<256> present;
  for (char c : sample) present.set(static_cast<unsigned char>(c));
  std::vector<std::string> symbols;
  for (size_t byte = 0; byte < 256; ++byte)
    if (present[byte]) symbols.emplace_back(1, static_cast<char>(byte));
  return {Kind::bytes, std::move(symbols)};
}

Vocabulary Vocabulary::of_words(std::vector<std::string> words) {
  for (const std::string& word : words) {
    if (word.empty() || word.find_first_of(" \n") != word.npos)
      throw ValueError("vocabulary: a word must be without spaces and not empty, but is '{}'",
                       escaped(word));
  }
  return {Kind::words, std::move(words)};
}

Vocabulary Vocabulary::of_numbers(int64_t n) {
  std::vector<std::string> numbers;
  for (int64_t i = 0; i < n; ++i) numbers.push_back(std::to_string(i));
  return {Kind::numbers, std::move(numbers)};
}

Vocabulary Vocabulary::parse(std::string_view text) {
  if (text.starts_with(kNumbers)) {
    const std::string_view digits = text.substr(kNumbers.size());
    int64_t n = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), n);
    if (error != std::errc() || end != digits.data() + digits.size() || n < 0 || n > 1 << 24)
      throw_bad_text(text);
    return of_numbers(n);
  }
  if (text.starts_with(kBytes)) {
    std::vector<std::string> symbols;
    for (char c : unescaped(text.substr(kBytes.size()))) symbols.emplace_back(1, c);
    return {Kind::bytes, std::move(symbols)};
  }
  if (!text.starts_with(kWords)) throw_bad_text(text);
  std::vector<std::string> symbols;
  for_words(unescaped(text.substr(kWords.size())),
            [&](std::string_view word, size_t) { symbols.emplace_back(word); });
  return {Kind::words, std::move(symbols)};
}

std::string Vocabulary::text() const {
  if (kind_ == Kind::numbers) return std::string(kNumbers) + std::to_string(size());
  std::string out(kind_ == Kind::bytes ? kBytes : kWords);
  for (size_t i = 0; i < symbols_.size(); ++i) {
    if (i > 0 && kind_ == Kind::words) out += ' ';
    out += escaped(symbols_[i]);
  }
  return out;
}

const std::string& Vocabulary::symbol(int32_t token) const {
  if (token < 0 || token >= size())
    throw ValueError("vocabulary: a token must lie in 0 … {}, but is {}", size() - 1, token);
  return symbols_[static_cast<size_t>(token)];
}

int32_t Vocabulary::token(std::string_view symbol) const {
  const auto found = tokens_.find(std::string(symbol));
  if (found == tokens_.end())
    throw ValueError("vocabulary: a symbol must be one of the {}, but is '{}'", size(),
                     escaped(symbol));
  return found->second;
}

std::vector<int32_t> Vocabulary::encode(std::string_view text) const {
  return kind_ == Kind::bytes ? encode_bytes(text) : encode_words(text);
}

std::vector<int32_t> Vocabulary::encode_bytes(std::string_view text) const {
  std::array<int32_t, 256> token_of;
  token_of.fill(-1);
  for (size_t i = 0; i < symbols_.size(); ++i)
    token_of[static_cast<unsigned char>(symbols_[i][0])] = static_cast<int32_t>(i);
  std::vector<int32_t> tokens(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    tokens[i] = token_of[static_cast<unsigned char>(text[i])];
    if (tokens[i] < 0)
      throw ValueError(
          "encode: each byte must be among the {} of the vocabulary, but '{}' at position {} is "
          "not",
          size(), escaped(text.substr(i, 1)), i);
  }
  return tokens;
}

std::vector<int32_t> Vocabulary::encode_words(std::string_view text) const {
  std::vector<int32_t> tokens;
  for_words(text, [&](std::string_view word, size_t at) {
    const auto found = tokens_.find(std::string(word));
    if (found == tokens_.end())
      throw ValueError(
          "encode: each word must be among the {} of the vocabulary, but '{}' at position {} is "
          "not",
          size(), escaped(word), at);
    tokens.push_back(found->second);
  });
  return tokens;
}

std::string Vocabulary::decode(std::span<const int32_t> tokens) const {
  std::string out;
  for (int32_t token : tokens) {
    if (token < 0) continue;
    if (!out.empty() && kind_ != Kind::bytes) out += ' ';
    out += symbol(token);
  }
  return out;
}

}  // namespace norma::nn
