#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace norma::detail {

// The compiler's vector types: one source for every width, and sums that stay in registers, where
// g++ 12 keeps an array of lanes in memory.

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VectorOf {
  static constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(T));
  using type [[gnu::vector_size(kVectorBytes), gnu::aligned(alignof(T)), gnu::may_alias]] = T;
};
template <class T>
using Vector = typename VectorOf<T>::type;

/// f(0), f(1), … f(kCount − 1), the numbers constants: what they index stays in registers.
template <int kCount, class F>
[[gnu::always_inline]] inline void for_constants(const F& f) {
  [&]<int... kIs>(std::integer_sequence<int, kIs...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, kIs>{}), ...);
  }
  (std::make_integer_sequence<int, kCount>{});
}

inline constexpr int kLanes32 = 32;  // the same for every processor, and so are the bits of sums

/// How many elements from here on: kLanes32, known to the compiler, or fewer at a row's end.
using All32 = std::integral_constant<int64_t, kLanes32>;

template <class Acc>
struct Totals {
  Acc a = 0, b = 0;
  friend Totals operator+(const Totals& x, const Totals& y) { return {x.a + y.a, x.b + y.b}; }
};

template <class Acc>
struct Lanes32 {
  static constexpr int kWidth = VectorOf<Acc>::kWidth, kVectors = kLanes32 / kWidth;
  Vector<Acc> v[kVectors];

  Lanes32() : Lanes32(Acc(0)) {}
  Lanes32(Acc value) {  // NOLINT: a number stands for 32 of them
    // Not a loop: g++ makes a string instruction of one that fills with zeros, as slow as ten rows.
    for_constants<kVectors>([&](auto i) { v[i] = value - Vector<Acc>{}; });
  }
  friend Lanes32 operator+(const Lanes32& a, const Lanes32& b) {
    return each(a, b, [](auto x, auto y) { return x + y; });
  }
  friend Lanes32 operator-(const Lanes32& a, const Lanes32& b) {
    return each(a, b, [](auto x, auto y) { return x - y; });
  }
  friend Lanes32 operator*(const Lanes32& a, const Lanes32& b) {
    return each(a, b, [](auto x, auto y) { return x * y; });
  }
  Lanes32& operator+=(const Lanes32& b) { return *this = *this + b; }

  /// Lane j + lane j + 16, then + 8, …
  Acc total() const { return across<kWidth / 2, kWidth>(one_vector())[0]; }
  /// Two totals, with the same bits, in little more than the time of one.
  friend Totals<Acc> totals(const Lanes32& a, const Lanes32& b) {
    const Vector<Acc> both =
        across<kWidth / 4, kWidth / 2>(halves_added(a.one_vector(), b.one_vector(), Indices{}));
    return {both[0], both[kWidth / 2]};
  }

 private:
  template <class F>
  static Lanes32 each(const Lanes32& a, const Lanes32& b, const F& f) {
    Lanes32 out{Uninitialized{}};
    for (int i = 0; i < kVectors; ++i) out.v[i] = f(a.v[i], b.v[i]);
    return out;
  }
  struct Uninitialized {};
  explicit Lanes32(Uninitialized) {}

  using Indices = std::make_integer_sequence<int, kWidth>;
  Vector<Acc> one_vector() const {
    Vector<Acc> sum[kVectors];
    for (int i = 0; i < kVectors; ++i) sum[i] = v[i];
    for (int half = kVectors / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
    return sum[0];
  }
  /// Each group's elements added, kHalf apart, then half as far.
  template <int kHalf, int kGroup>
  static Vector<Acc> across(Vector<Acc> sum) {
    if constexpr (kHalf == 0)
      return sum;
    else
      return across<kHalf / 2, kGroup>(sum + shifted<kHalf, kGroup>(sum, Indices{}));
  }
  template <int kBy, int kGroup, int... kLane>
  static Vector<Acc> shifted(Vector<Acc> x, std::integer_sequence<int, kLane...>) {
    return __builtin_shufflevector(x, x,
                                   (kLane / kGroup * kGroup + (kLane % kGroup + kBy) % kGroup)...);
  }
  /// a's halves added, then b's.
  template <int... kLane>
  static Vector<Acc> halves_added(Vector<Acc> a, Vector<Acc> b,
                                  std::integer_sequence<int, kLane...>) {
    constexpr int kHalf = kWidth / 2;
    return __builtin_shufflevector(a, b, (kLane < kHalf ? kLane : kLane + kHalf)...) +
           __builtin_shufflevector(a, b, (kLane < kHalf ? kLane + kHalf : kLane + kWidth)...);
  }
};

/// The next n elements; beyond them `rest`.
template <class Acc, class T, class Count>
Lanes32<Acc> load32_as(const T* from, Count n, Acc rest = 0) {
  if constexpr (std::is_same_v<Count, All32> && std::is_same_v<T, Acc>) {
    Lanes32<Acc> out;
    for (int i = 0; i < Lanes32<Acc>::kVectors; ++i)
      out.v[i] = *reinterpret_cast<const Vector<Acc>*>(from + i * Lanes32<Acc>::kWidth);
    return out;
  } else {
    alignas(64) Acc ready[kLanes32];
    for (int j = 0; j < kLanes32; ++j) ready[j] = j < n ? static_cast<Acc>(from[j]) : rest;
    return load32_as<Acc>(ready, All32{});
  }
}
template <class Acc, class Count>
Lanes32<Acc> load32(const Acc* from, Count n, Acc rest = 0) {
  return load32_as<Acc>(from, n, rest);
}

/// 64 bytes to an aligned address, past the caches where the processor can.
inline void stream_64_bytes(const void* from, void* to) {
#if defined(__AVX512F__)
  _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
#elif defined(__AVX__)
  for (int i = 0; i < 2; ++i)
    _mm256_stream_si256(static_cast<__m256i*>(to) + i,
                        _mm256_loadu_si256(static_cast<const __m256i*>(from) + i));
#elif defined(__SSE2__)
  for (int i = 0; i < 4; ++i)
    _mm_stream_si128(static_cast<__m128i*>(to) + i,
                     _mm_loadu_si128(static_cast<const __m128i*>(from) + i));
#else
  std::copy_n(static_cast<const std::byte*>(from), 64, static_cast<std::byte*>(to));
#endif
}
/// Before another thread may read what was streamed.
inline void end_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

/// The first n elements as T's. kStream: past the caches; `to` is then aligned to 64 bytes.
template <bool kStream, class T, class Acc, class Count>
void store32(const Lanes32<Acc>& lanes, T* to, Count n) {
  if constexpr (!std::is_same_v<T, Acc>) {
    alignas(64) Acc wide[kLanes32];
    alignas(64) T narrow[kLanes32];
    store32<false>(lanes, wide, All32{});
    for (int j = 0; j < kLanes32; ++j) narrow[j] = static_cast<T>(wide[j]);
    if constexpr (kStream && std::is_same_v<Count, All32>) {
      for (size_t j = 0; j < kLanes32; j += 64 / sizeof(T)) stream_64_bytes(narrow + j, to + j);
    } else {
      for (int64_t j = 0; j < n; ++j) to[j] = narrow[j];
    }
  } else if constexpr (!std::is_same_v<Count, All32>) {
    alignas(64) Acc all[kLanes32];
    store32<false>(lanes, all, All32{});
    for (int64_t j = 0; j < n; ++j) to[j] = all[j];
  } else if constexpr (kStream) {
    constexpr int kVectors = 64 / kVectorBytes;
    for (int i = 0; i < Lanes32<Acc>::kVectors; i += kVectors)
      stream_64_bytes(lanes.v + i, to + i * Lanes32<Acc>::kWidth);
  } else {
    for (int i = 0; i < Lanes32<Acc>::kVectors; ++i)
      *reinterpret_cast<Vector<Acc>*>(to + i * Lanes32<Acc>::kWidth) = lanes.v[i];
  }
}

/// f(c, count) for each 32 of n elements, count an All32 but for the last ones.
template <class F>
[[gnu::always_inline]] inline void for_each32(int64_t n, const F& f) {
  int64_t c = 0;
  for (; c + kLanes32 <= n; c += kLanes32) f(c, All32{});
  if (c < n) f(c, n - c);
}

/// One vector of 32 lanes, or all of those at a row's end: see for_parts.
template <int kVector>
struct PartOf32 {
  template <class Acc>
  Vector<Acc> load(const Acc* from, Acc = 0) const {
    return *reinterpret_cast<const Vector<Acc>*>(from + kVector * VectorOf<Acc>::kWidth);
  }
  template <class Acc>
  void store(const Vector<Acc>& v, Acc* to) const {
    *reinterpret_cast<Vector<Acc>*>(to + kVector * VectorOf<Acc>::kWidth) = v;
  }
  template <class Acc>
  Vector<Acc>& of(Lanes32<Acc>& lanes) const {
    return lanes.v[kVector];
  }
};
struct EndOf32 {
  int64_t n;
  template <class Acc>
  Lanes32<Acc> load(const Acc* from, Acc rest = 0) const {
    return load32(from, n, rest);
  }
  template <class Acc>
  void store(const Lanes32<Acc>& v, Acc* to) const {
    store32<false>(v, to, n);
  }
  template <class Acc>
  Lanes32<Acc>& of(Lanes32<Acc>& lanes) const {
    return lanes;
  }
};
/// f(part) for each vector of the 32 lanes in turn, or once where they are fewer: a long formula
/// stays in registers, where with 32 lanes of each of its terms it would not.
template <class Acc, class Count, class F>
[[gnu::always_inline]] inline void for_parts(Count count, const F& f) {
  if constexpr (std::is_same_v<Count, All32>)
    for_constants<Lanes32<Acc>::kVectors>([&](auto v)
                                              __attribute__((always_inline)) { f(PartOf32<v>{}); });
  else
    f(EndOf32{count});
}

/// Asks for the lines of 32 elements, to be read some rows later.
template <class T>
void prefetch32(const T* from) {
  for (size_t byte = 0; byte < kLanes32 * sizeof(T); byte += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(from) + byte, 0, 2);
}

}  // namespace norma::detail
