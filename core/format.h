#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace norma {

/// One argument of format(), its type erased so that the formatting library stays in one .cpp.
/// A type of one's own takes part by `std::string to_string(const T&)`, found by argument-dependent
/// lookup; with `to_string(const T&, std::string_view spec)` it sees the text after the colon too.
class FormatArg {
 public:
  enum class Kind { integer, natural, real, boolean, character, text, custom };
  using Custom = std::string (*)(const void*, std::string_view spec);

  template <class T>
  FormatArg(const T& value) {  // NOLINT: conversion is the purpose
    if constexpr (std::is_same_v<T, bool>) {
      kind = Kind::boolean, natural = value;
    } else if constexpr (std::is_same_v<T, char>) {
      kind = Kind::character, integer = value;
    } else if constexpr (std::is_floating_point_v<T>) {
      kind = Kind::real, real = value;
    } else if constexpr (std::is_integral_v<T> && std::is_signed_v<T>) {
      kind = Kind::integer, integer = value;
    } else if constexpr (std::is_integral_v<T>) {
      kind = Kind::natural, natural = value;
    } else if constexpr (std::is_convertible_v<const T&, std::string_view>) {
      kind = Kind::text, text = std::string_view(value);
    } else {
      kind = Kind::custom, object = &value;
      custom = [](const void* p, [[maybe_unused]] std::string_view spec) {
        if constexpr (requires { to_string(*static_cast<const T*>(p), spec); })
          return std::string(to_string(*static_cast<const T*>(p), spec));
        else
          return std::string(to_string(*static_cast<const T*>(p)));
      };
    }
  }

  Kind kind;
  union {
    int64_t integer;
    uint64_t natural;
    double real;
    const void* object;
  };
  std::string_view text = {};
  Custom custom = nullptr;
};

namespace detail {
std::string format_args(std::string_view format, std::span<const FormatArg> args);
void print_text(std::string_view text);
}  // namespace detail

/// Python-style formatting: `format("{:.2f} of {}", 0.5, shape)`. Numbers, text, Tensor, Shape and
/// whatever has a to_string. Throws std::runtime_error where the format does not fit its arguments.
template <class... A>
std::string format(std::string_view text, A&&... args) {
  if constexpr (sizeof...(A) == 0) {
    return detail::format_args(text, {});
  } else {
    const FormatArg erased[] = {FormatArg(args)...};
    return detail::format_args(text, erased);
  }
}
/// The same. It and A&& are there for calls with a std::string among the arguments: these see
/// std::format too, of which this is the better match.
template <class... A>
std::string format(const char* text, A&&... args) {
  return norma::format(std::string_view(text), args...);
}

/// Writes format(…) to standard output.
template <class... A>
void print(std::string_view text, const A&... args) {
  detail::print_text(norma::format(text, args...));
}

}  // namespace norma
