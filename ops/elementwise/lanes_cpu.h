#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "norma/ops/elementwise/lanes32_cpu.h"

// Without AVX-512 the compiler notes that vectors of 64 bytes travel otherwise than with it; what
// returns one is always inline.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace norma::detail {

inline constexpr int kLaneBytes = 64;  // on every processor: the compiler splits what is wider

template <class T, class Element = T>
struct LanesOf {
  using type [[gnu::vector_size(kLaneBytes), gnu::aligned(alignof(Element)), gnu::may_alias]] =
      Element;
};
/// 16 floats or 8 doubles in the compiler's vector type, with arithmetic of its own.
template <class T>
using Lanes = typename LanesOf<T>::type;
template <class T>
using IntegerLanes =
    typename LanesOf<T, std::conditional_t<std::is_same_v<T, double>, int64_t, int32_t>>::type;
template <class T>
inline constexpr int64_t kLaneCount = kLaneBytes / static_cast<int64_t>(sizeof(T));

template <class T>
constexpr int64_t round_up_to_lanes(int64_t n) {
  return (n + kLaneCount<T> - 1) / kLaneCount<T> * kLaneCount<T>;
}
template <class T>
[[gnu::always_inline]] inline Lanes<T> load_lanes(const T* from) {
  return *reinterpret_cast<const Lanes<T>*>(from);
}
template <class T>
[[gnu::always_inline]] inline void store_lanes(T* to, const Lanes<T>& lanes) {
  *reinterpret_cast<Lanes<T>*>(to) = lanes;
}
/// As many integers as a Vector<T> has elements.
template <class T>
struct IntegersOf {
  using Element = std::conditional_t<std::is_same_v<T, double>, int64_t, int32_t>;
  using type [[gnu::vector_size(kVectorBytes), gnu::aligned(alignof(T)), gnu::may_alias]] = Element;
};
/// f of a vector's halves, then of their halves, … down to one element.
template <class T, int kHalf = VectorOf<T>::kWidth / 2, class F>
[[gnu::always_inline]] inline T across_vector(const Vector<T>& v, const F& f) {
  if constexpr (kHalf == 0) {
    return v[0];
  } else {
    constexpr int kWidth = VectorOf<T>::kWidth;
    const Vector<T> moved = [&]<int... kLane>(std::integer_sequence<int, kLane...>)
        __attribute__((always_inline)) {
      return __builtin_shufflevector(v, v, ((kLane + kHalf) % kWidth)...);
    }
    (std::make_integer_sequence<int, kWidth>{});
    return across_vector<T, kHalf / 2>(f(v, moved), f);
  }
}
/// The sum of its elements, the halves first.
template <class T>
T sum_of_vector(const Vector<T>& v) {
  return across_vector<T>(v, [](const Vector<T>& a, const Vector<T>& b) { return a + b; });
}
/// 2ⁿ, for n that an exponent holds.
template <class T>
Vector<T> power_of_2(const typename IntegersOf<T>::type& n) {
  constexpr int mantissa = std::is_same_v<T, double> ? 52 : 23;
  constexpr int bias = std::is_same_v<T, double> ? 1023 : 127;
  return reinterpret_cast<Vector<T>>((n + bias) << mantissa);
}
/// The nearest integers.
template <class T>
Vector<T> rounded(const Vector<T>& x) {
  constexpr T magic = T(1.5) * T(int64_t{1} << (std::is_same_v<T, double> ? 52 : 23));
  return (x + magic) - magic;
}
template <class T>
constexpr T one_over_factorial(int k) {
  double product = 1;
  for (int i = 2; i <= k; ++i) product *= i;
  return static_cast<T>(1 / product);
}
/// eˣ for |x| up to ln 2 / 2: the series, cut where the next term is below half an ulp.
template <class T>
Vector<T> exp_series(const Vector<T>& x) {
  constexpr int terms = std::is_same_v<T, double> ? 13 : 7;
  Vector<T> series = one_over_factorial<T>(terms) + Vector<T>{};
  for_constants<terms>([&](auto k) __attribute__((always_inline)) {
    constexpr T coefficient = one_over_factorial<T>(terms - 1 - k);
    series = series * x + coefficient;
  });
  return series;
}

/// 2ˣ, 0 below the normal numbers. NaN stays.
template <class T>
Vector<T> exp2_vector(const Vector<T>& x) {
  constexpr bool wide = std::is_same_v<T, double>;
  constexpr T low = wide ? -1022 : -126, high = wide ? 1024 : 128;
  constexpr T ln2 = T(0.693147180559945309417232121458L);
  // One less than the exponents of normal numbers is 0's, one more the infinite's.
  const Vector<T> bounded = x < low ? low - 1 + Vector<T>{} : x > high ? high + Vector<T>{} : x;
  const Vector<T> whole = rounded<T>(bounded), series = exp_series<T>((bounded - whole) * ln2);
  const auto n = __builtin_convertvector(whole, typename IntegersOf<T>::type);
  return series * power_of_2<T>(n);
}
/// eˣ to 2 ulp; 0 below e⁻⁸⁷ (e⁻⁷⁰⁸), infinite above e⁸⁸ (e⁷⁰⁹). NaN stays.
template <class T>
Vector<T> exp_vector(const Vector<T>& x) {
  constexpr bool wide = std::is_same_v<T, double>;
  constexpr T low = wide ? -708 : -87, high = wide ? 709 : 88;
  // Few digits in the first part: its multiples are exact.
  constexpr T log2e = T(1.44269504088896340735992468100L), ln2_high = T(0.693359375),
              ln2_low = T(-2.12194440054690583e-4);
  const Vector<T> bounded = x < low ? low + Vector<T>{} : x > high ? high + Vector<T>{} : x;
  const Vector<T> whole = rounded<T>(bounded * log2e);
  const Vector<T> series = exp_series<T>(bounded - whole * ln2_high - whole * ln2_low);
  const auto n = __builtin_convertvector(whole, typename IntegersOf<T>::type);
  const Vector<T> y = series * power_of_2<T>(n);
  return x < low ? Vector<T>{} : x > high ? std::numeric_limits<T>::infinity() + Vector<T>{} : y;
}

/// f of all lanes, a register at a time: g++ takes a choice in wider vectors apart element by
/// element.
template <class T, class F>
[[gnu::always_inline]] inline Lanes<T> by_vectors(const Lanes<T>& x, const F& f) {
  Vector<T> part[kLaneBytes / kVectorBytes];
  std::memcpy(part, &x, sizeof(x));
  for (int i = 0; i < kLaneBytes / kVectorBytes; ++i) part[i] = f(part[i]);
  Lanes<T> y;
  std::memcpy(&y, part, sizeof(y));
  return y;
}
template <class T>
[[gnu::always_inline]] inline Lanes<T> exp2_lanes(const Lanes<T>& x) {
  return by_vectors<T>(x, [](const Vector<T>& v) { return exp2_vector<T>(v); });
}
template <class T>
inline constexpr T kLog2E = T(1.44269504088896340735992468100L);
template <class T>
[[gnu::always_inline]] inline Lanes<T> sigmoid_lanes(const Lanes<T>& x) {
  return T(1) / (T(1) + exp2_lanes<T>(x * -kLog2E<T>));
}

}  // namespace norma::detail
