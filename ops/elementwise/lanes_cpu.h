#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

// Without AVX-512 the compiler notes that vectors of 64 bytes travel otherwise than with it; they
// do so only inside one file.
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
Lanes<T> load_lanes(const T* from) {
  return *reinterpret_cast<const Lanes<T>*>(from);
}
template <class T>
void store_lanes(T* to, const Lanes<T>& lanes) {
  *reinterpret_cast<Lanes<T>*>(to) = lanes;
}
/// Their sum, always in the same order.
template <class T>
T sum_of_lanes(const Lanes<T>& lanes) {
  T part[kLaneCount<T>];
  store_lanes(part, lanes);
  for (int64_t half = kLaneCount<T> / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) part[i] += part[i + half];
  return part[0];
}

/// 2ˣ: 2^r for the nearest integer r goes into the exponent, the rest, at most 1/2, into the series
/// of e^(f ln 2), cut where the next term is below half an ulp. 0 below the normal numbers. NaN
/// stays.
template <class T>
Lanes<T> exp2_lanes(const Lanes<T>& x) {
  constexpr bool wide = std::is_same_v<T, double>;
  constexpr T low = wide ? -1022 : -126, high = wide ? 1024 : 128;
  constexpr int mantissa = wide ? 52 : 23, terms = wide ? 13 : 7;
  constexpr T ln2 = T(0.693147180559945309417232121458L),
              magic = T(1.5) * T(int64_t{1} << mantissa);
  const Lanes<T> bounded = x < low ? low + Lanes<T>{} : x > high ? high + Lanes<T>{} : x;
  const Lanes<T> whole = (bounded + magic) - magic, f = (bounded - whole) * ln2;
  Lanes<T> series = T(1) + Lanes<T>{};
#pragma GCC unroll 16
  for (int k = terms; k > 0; --k) series = T(1) + series * f * (T(1) / static_cast<T>(k));
  const auto exponent = __builtin_convertvector(whole, IntegerLanes<T>) << mantissa;
  const Lanes<T> y =
      reinterpret_cast<Lanes<T>>(reinterpret_cast<IntegerLanes<T>>(series) + exponent);
  return x < low ? Lanes<T>{} : x >= high ? std::numeric_limits<T>::infinity() + Lanes<T>{} : y;
}
template <class T>
inline constexpr T kLog2E = T(1.44269504088896340735992468100L);
template <class T>
Lanes<T> sigmoid_lanes(const Lanes<T>& x) {
  return T(1) / (T(1) + exp2_lanes<T>(x * -kLog2E<T>));
}

}  // namespace norma::detail
