#pragma once

#include <type_traits>

namespace norma::detail {

/// How many fields an aggregate has, up to eight: as many as it takes empty braces for.
template <class T>
consteval int field_count() {
  if constexpr (requires { T{{}, {}, {}, {}, {}, {}, {}, {}, {}}; }) return 9;
  if constexpr (requires { T{{}, {}, {}, {}, {}, {}, {}, {}}; }) return 8;
  if constexpr (requires { T{{}, {}, {}, {}, {}, {}, {}}; }) return 7;
  if constexpr (requires { T{{}, {}, {}, {}, {}, {}}; }) return 6;
  if constexpr (requires { T{{}, {}, {}, {}, {}}; }) return 5;
  if constexpr (requires { T{{}, {}, {}, {}}; }) return 4;
  if constexpr (requires { T{{}, {}, {}}; }) return 3;
  if constexpr (requires { T{{}, {}}; }) return 2;
  if constexpr (requires { T{{}}; }) return 1;
  return 0;
}

/// f(field) for each field of an aggregate in order. A field that is an aggregate itself is passed
/// whole.
template <class T, class F>
constexpr void for_each_field(T& object, F&& f) {
  constexpr int n = field_count<std::remove_const_t<T>>();
  static_assert(n <= 8, "at most eight fields can be looked through; nest a struct");
  const auto each = [&](auto&... fields) { (f(fields), ...); };
  if constexpr (n == 1) {
    auto& [a] = object;
    each(a);
  } else if constexpr (n == 2) {
    auto& [a, b] = object;
    each(a, b);
  } else if constexpr (n == 3) {
    auto& [a, b, c] = object;
    each(a, b, c);
  } else if constexpr (n == 4) {
    auto& [a, b, c, d] = object;
    each(a, b, c, d);
  } else if constexpr (n == 5) {
    auto& [a, b, c, d, e] = object;
    each(a, b, c, d, e);
  } else if constexpr (n == 6) {
    auto& [a, b, c, d, e, g] = object;
    each(a, b, c, d, e, g);
  } else if constexpr (n == 7) {
    auto& [a, b, c, d, e, g, h] = object;
    each(a, b, c, d, e, g, h);
  } else if constexpr (n == 8) {
    auto& [a, b, c, d, e, g, h, i] = object;
    each(a, b, c, d, e, g, h, i);
  }
}

}  // namespace norma::detail
