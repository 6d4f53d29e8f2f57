#pragma once

#include <bit>
#include <cstdint>
#include <string_view>
#include <type_traits>

namespace norma {

/// The seven element types. They are run-time values up to a kernel's door, where visit_* turns
/// them into template arguments.
enum class DType : uint8_t { float32, float64, bfloat16, float16, int32, int64, bool_ };
using enum DType;  // float64 reads better than DType::float64

/// Brain floating point: float32's exponent, 8 bits of significand. Rounds to nearest even.
struct BFloat16 {
  uint16_t bits = 0;

  constexpr BFloat16() = default;
  constexpr BFloat16(float value)  // NOLINT: converts like the built-in types
      : bits(rounded(std::bit_cast<uint32_t>(value))) {}
  constexpr operator float() const {  // NOLINT
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }

 private:
  static constexpr uint16_t rounded(uint32_t u) {
    const bool nan = (u & 0x7fffffffU) > 0x7f800000U;
    const uint32_t up = (u + 0x7fffU + ((u >> 16) & 1U)) >> 16;
    return static_cast<uint16_t>(nan ? (u >> 16) | 0x40U : up);
  }
};

/// IEEE binary16. Rounds to nearest even, keeps subnormals.
struct Float16 {
  uint16_t bits = 0;

  constexpr Float16() = default;
  constexpr Float16(float value)  // NOLINT
      : bits(rounded(std::bit_cast<uint32_t>(value))) {}
  constexpr operator float() const {  // NOLINT
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000U) << 16;
    const uint32_t magnitude = bits & 0x7fffU;
    // Placed in a float the exponent is 112 too small; one multiplication mends it, subnormals too.
    const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112F;
    const uint32_t u = std::bit_cast<uint32_t>(scaled) | (magnitude >= 0x7c00U ? 0x7f800000U : 0U);
    return std::bit_cast<float>(u | sign);
  }

 private:
  static constexpr uint16_t rounded(uint32_t u) {
    const uint32_t sign = (u >> 16) & 0x8000U, magnitude = u & 0x7fffffffU;
    uint32_t half = 0;
    if (magnitude > 0x7f800000U) {
      half = 0x7e00U;
    } else if (magnitude >= 0x477ff000U) {  // 65520 and above round to infinity
      half = 0x7c00U;
    } else if (magnitude < 0x38800000U) {  // below 2^-14: adding 1/2 lets the addition round
      const float sum = std::bit_cast<float>(magnitude) + 0.5F;
      half = std::bit_cast<uint32_t>(sum) - 0x3f000000U;
    } else {
      half = (magnitude - 0x38000000U + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
    }
    return static_cast<uint16_t>(half | sign);
  }
};

template <class T>
inline constexpr DType dtype_of = [] {
  if constexpr (std::is_same_v<T, float>) return float32;
  if constexpr (std::is_same_v<T, double>) return float64;
  if constexpr (std::is_same_v<T, BFloat16>) return bfloat16;
  if constexpr (std::is_same_v<T, Float16>) return float16;
  if constexpr (std::is_same_v<T, int32_t>) return int32;
  if constexpr (std::is_same_v<T, int64_t>) return int64;
  if constexpr (std::is_same_v<T, bool>) return bool_;
}();

/// What statistics and sums of T are kept in: double for double, else float.
template <class T>
using stats_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case float32:
    case int32:
      return 4;
    case float64:
    case int64:
      return 8;
    case bfloat16:
    case float16:
      return 2;
    case bool_:
      return 1;
  }
  return 0;
}
constexpr bool is_floating(DType dtype) { return dtype <= float16; }
constexpr DType stats_dtype(DType dtype) { return dtype == float64 ? float64 : float32; }

/// Half the distance from 1 to the next larger number: the relative error of one rounding.
constexpr double unit_roundoff(DType dtype) {
  switch (dtype) {
    case float32:
      return 0x1p-24;
    case float64:
      return 0x1p-53;
    case bfloat16:
      return 0x1p-8;
    case float16:
      return 0x1p-11;
    default:
      return 0;
  }
}

std::string_view to_string(DType dtype);
/// The dtype of that name ("float32", "bool", …); throws DTypeError listing the names.
DType dtype_from_string(std::string_view name);

namespace detail {
// Out of line: every kernel's file reads this one, and errors' texts take long to compile.
[[noreturn]] void throw_not_floating(DType dtype);
[[noreturn]] void throw_not_an_index(DType dtype);
[[noreturn]] void throw_unknown(DType dtype);
}  // namespace detail

/// Calls f.template operator()<T>() with the element type; DTypeError for what is not floating.
template <class F>
decltype(auto) visit_floating(DType dtype, F&& f) {
  switch (dtype) {
    case float32:
      return f.template operator()<float>();
    case float64:
      return f.template operator()<double>();
    case bfloat16:
      return f.template operator()<BFloat16>();
    case float16:
      return f.template operator()<Float16>();
    default:
      detail::throw_not_floating(dtype);
  }
}

/// The same with an unsigned integer as wide as an element, for what moves values unread.
template <class F>
decltype(auto) visit_bytes(DType dtype, F&& f) {
  switch (size_of(dtype)) {
    case 8:
      return f.template operator()<uint64_t>();
    case 4:
      return f.template operator()<uint32_t>();
    case 2:
      return f.template operator()<uint16_t>();
    default:
      return f.template operator()<uint8_t>();
  }
}

template <class F>
decltype(auto) visit_all(DType dtype, F&& f) {
  switch (dtype) {
    case float32:
      return f.template operator()<float>();
    case float64:
      return f.template operator()<double>();
    case bfloat16:
      return f.template operator()<BFloat16>();
    case float16:
      return f.template operator()<Float16>();
    case int32:
      return f.template operator()<int32_t>();
    case int64:
      return f.template operator()<int64_t>();
    case bool_:
      return f.template operator()<bool>();
  }
  detail::throw_unknown(dtype);
}

/// For indices: int32 or int64.
template <class F>
decltype(auto) visit_index(DType dtype, F&& f) {
  switch (dtype) {
    case int32:
      return f.template operator()<int32_t>();
    case int64:
      return f.template operator()<int64_t>();
    default:
      detail::throw_not_an_index(dtype);
  }
}

}  // namespace norma
