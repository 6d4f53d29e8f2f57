#include "norma/core/random.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <type_traits>
#include <utility>

#include "norma/core/error.h"
#include "norma/core/parallel.h"

// Compiled with -ffp-contract=off. Only +, −, ×, correctly rounded roots, quotients and
// conversions: so any compiler, processor and GPU gives the same bits. Loops run over lanes without
// branches or calls, for the compiler to vectorize.

namespace norma {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements: 15 to 50 µs
constexpr int kLanes = 32;  // groups drawn together: more is 4 % faster, but 8 elements cost a tile

/// The four words of kLanes consecutive groups.
struct Tile {
  uint32_t words[4][kLanes];
};

/// The rounds by name, since a compiler that leaves them a loop does not vectorize over lanes.
template <size_t... kRound>
void draw(Tile& tile, const RandomKey& key, uint64_t group, std::index_sequence<kRound...>) {
  const auto k0 = static_cast<uint32_t>(key.key), k1 = static_cast<uint32_t>(key.key >> 32);
  const uint32_t call = key.resolved().call;
  for (uint32_t i = 0; i < kLanes; ++i) {
    std::array<uint32_t, 4> c = {
        static_cast<uint32_t>(group) + i,  // kLanes divides group: no carry
        static_cast<uint32_t>(group >> 32), key.ordinal, call};
    ((c = philox_round(c, k0 + uint32_t{kRound} * kPhiloxStep0,
                       k1 + uint32_t{kRound} * kPhiloxStep1)),
     ...);
    for (int w = 0; w < 4; ++w) tile.words[w][i] = c[static_cast<size_t>(w)];
  }
}

/// Writes n elements, kWidth from a group: transform(tile, out) writes kLanes · kWidth.
template <int kWidth, class T, class F>
void fill_tiles(RandomKey key, T* out, int64_t n, const F& transform) {
  constexpr int64_t kStep = int64_t{kLanes} * kWidth;
  static_assert(kGrain % kStep == 0);
  const Split s = split(n, kGrain);
  parallel_for(s.blocks, [&](int64_t b) {
    Tile tile;
    T rest[kStep];
    for (int64_t i = s.begin(b); i < s.end(b); i += kStep) {
      draw(tile, key, static_cast<uint64_t>(i / kWidth), std::make_index_sequence<10>());
      if (s.end(b) - i >= kStep) {
        transform(tile, out + i);
      } else {
        transform(tile, rest);
        std::copy(rest, rest + (s.end(b) - i), out + i);
      }
    }
  });
}

// Uniforms.

float uniform_float(uint32_t word) {
  return static_cast<float>(static_cast<int32_t>(word >> 8)) * 0x1p-24f;
}

/// 53 bits of two words; both products and their sum are exact.
double uniform_double(uint32_t high, uint32_t low) {
  return static_cast<double>(high) * 0x1p-32 +
         static_cast<double>(static_cast<int32_t>(low >> 11)) * 0x1p-53;
}

template <class T>
constexpr float kBelowOne = static_cast<float>(1 - unit_roundoff(dtype_of<T>));

template <class T>
void uniforms(const Tile& tile, T* out) {
  for (int i = 0; i < kLanes; ++i)
    for (int w = 0; w < 4; ++w)
      out[4 * i + w] = T(std::min(uniform_float(tile.words[w][i]), kBelowOne<T>));
}
void uniforms(const Tile& tile, double* out) {
  const auto& w = tile.words;
  for (int i = 0; i < kLanes; ++i) {
    out[2 * i] = uniform_double(w[0][i], w[1][i]);
    out[2 * i + 1] = uniform_double(w[2][i], w[3][i]);
  }
}

// Normals, by Box and Muller: r cos θ and r sin θ of r = √(−2 ln u), u in (0, 1], and θ in [0, 2π).

template <class T, size_t n>
T polynomial(T x, const T (&coefficients)[n]) {  // lowest power first
  T sum = coefficients[n - 1];
  for (size_t k = n - 1; k-- > 0;) sum = sum * x + coefficients[k];
  return sum;
}

/// (ln(1 + f) − f + f²/2) / f³ for 1 + f in [√½, √2], within 7e-9 · f³; sin and cos likewise, all
/// interpolated at Chebyshev's nodes.
constexpr float kLog[] = {0.3333333073f, -0.2500030642f, 0.2000104509f, -0.1664128146f,
                          0.1421449592f, -0.1299818376f, 0.1262231985f, -0.07902743772f};
/// (sin a / a − 1) / a² and (cos a − 1 + a²/2) / a⁴ in powers of a², |a| ≤ π/4.
constexpr float kSine[] = {-0.1666666466f, 0.008332748271f, -0.0001958789088f};
constexpr float kCosine[] = {0.04166666466f, -0.001388830304f, 2.454794209e-5f};

/// Taylor's series of the same in double, and that of artanh(s)/s in s²: their remainders are
/// below 2⁻⁵⁷.
constexpr double kArtanh[] = {1,       1. / 3,  1. / 5,  1. / 7,  1. / 9,  1. / 11,
                              1. / 13, 1. / 15, 1. / 17, 1. / 19, 1. / 21, 1. / 23};
constexpr double kSineSeries[] = {
    -1. / 6,        1. / 120,        -1. / 5040,         1. / 362880,
    -1. / 39916800, 1. / 6227020800, -1. / 1307674368e3, 1. / 355687428096e3};
constexpr double kCosineSeries[] = {
    1. / 24,        -1. / 720,         1. / 40320,         -1. / 3628800,
    1. / 479001600, -1. / 87178291200, 1. / 20922789888e3, -1. / 6402373705728e3};

constexpr double kLn2 = 0.69314718055994530942, kTwoPi = 6.28318530717958647692;

/// −2 ln((word + ½) / 2³²).
float minus_two_log(uint32_t word) {
  const float x = static_cast<float>(word) + 0.5f;
  const auto bits = std::bit_cast<int32_t>(x);
  const int32_t e = (bits - 0x3F3504F3) >> 23;  // x = 2^e m, m from √½ to √2
  const float f = std::bit_cast<float>(bits - (e << 23)) - 1, q = f * f;
  const float log_m = (f * q * polynomial(f, kLog) - 0.5f * q) + f;
  return static_cast<float>(32 - e) * static_cast<float>(2 * kLn2) - 2 * log_m;
}

/// −2 ln u, for u the next 53-bit uniform above that of the words: ln m = 2 artanh((m−1)/(m+1)).
double minus_two_log(uint32_t high, uint32_t low) {
  const double u = uniform_double(high, low) + 0x1p-53;
  const auto bits = std::bit_cast<int64_t>(u);
  const int64_t e = (bits - 0x3FE6A09E667F3BCD) >> 52;
  const double m = std::bit_cast<double>(bits - (e << 52));
  const double s = (m - 1) / (m + 1);
  return static_cast<double>(static_cast<int32_t>(-e)) * (2 * kLn2) -
         4 * (s * polynomial(s * s, kArtanh));
}

template <class T>
struct Pair {
  T first, second;
};

/// r cos and r sin of the angle a, |a| ≤ π/4, turned by `quarters` of a circle.
template <class T>
Pair<T> turned(T r, T sine, T cosine, uint32_t quarters) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  constexpr int kSign = 8 * sizeof(T) - 2;  // from bit 1 to the sign's
  const T x = quarters & 1 ? sine : cosine, y = quarters & 1 ? cosine : sine;
  const Bits flip_x = static_cast<Bits>((quarters + 1) & 2) << kSign;
  const Bits flip_y = static_cast<Bits>(quarters & 2) << kSign;
  return {std::bit_cast<T>(std::bit_cast<Bits>(r * x) ^ flip_x),
          std::bit_cast<T>(std::bit_cast<Bits>(r * y) ^ flip_y)};
}

/// The nearest quarter circle to 2π · word / 2³², modulo 4, and what is left, as a signed word.
struct Turn {
  uint32_t quarters;
  int32_t rest;
};
Turn turn_of(uint32_t word) {
  const uint32_t quarters = (word + (1u << 29)) >> 30;
  return {quarters, static_cast<int32_t>(word - (quarters << 30))};
}

Pair<float> normal_pair(uint32_t u, uint32_t v) {
  const Turn turn = turn_of(v);
  const float a = static_cast<float>(turn.rest) * static_cast<float>(kTwoPi * 0x1p-32), q = a * a;
  const float sine = a + a * q * polynomial(q, kSine);
  const float cosine = 1 - (0.5f * q - q * q * polynomial(q, kCosine));
  return turned(std::sqrt(minus_two_log(u)), sine, cosine, turn.quarters);
}

Pair<double> normal_pair(uint32_t u0, uint32_t u1, uint32_t v0, uint32_t v1) {
  const Turn turn = turn_of(v0);
  const double rest = static_cast<double>(turn.rest) * 0x1p-32 +
                      static_cast<double>(static_cast<int32_t>(v1 >> 11)) * 0x1p-53;
  const double a = rest * kTwoPi, q = a * a;
  const double sine = a + a * q * polynomial(q, kSineSeries);
  const double cosine = 1 - (0.5 * q - q * q * polynomial(q, kCosineSeries));
  return turned(std::sqrt(minus_two_log(u0, u1)), sine, cosine, turn.quarters);
}

void normals(const Tile& tile, float* out) {
  for (int w = 0; w < 4; w += 2)  // a loop, so that the one call is inlined and vectorized
    for (int i = 0; i < kLanes; ++i) {
      const Pair<float> z = normal_pair(tile.words[w][i], tile.words[w + 1][i]);
      out[4 * i + w] = z.first;
      out[4 * i + w + 1] = z.second;
    }
}
template <class Half>
void normals(const Tile& tile, Half* out) {
  float wide[4 * kLanes];
  normals(tile, wide);
  std::copy(std::begin(wide), std::end(wide), out);
}
void normals(const Tile& tile, double* out) {
  const auto& w = tile.words;
  for (int i = 0; i < kLanes; ++i) {
    const Pair<double> z = normal_pair(w[0][i], w[1][i], w[2][i], w[3][i]);
    out[2 * i] = z.first, out[2 * i + 1] = z.second;
  }
}

// Integers.

__extension__ using Wide = unsigned __int128;

template <class Int>
void fill_integers_as(RandomKey key, int64_t low, int64_t high, Int* result, int64_t n) {
  const uint64_t count = static_cast<uint64_t>(high) - static_cast<uint64_t>(low);
  const auto pick = [=](uint32_t top, uint32_t bottom) {
    const uint64_t w = uint64_t{top} << 32 | bottom;
    const auto offset = static_cast<uint64_t>(static_cast<Wide>(w) * count >> 64);
    return static_cast<Int>(static_cast<uint64_t>(low) + offset);
  };
  fill_tiles<2>(key, result, n, [=](const Tile& tile, Int* out) {
    const auto& w = tile.words;
    for (int i = 0; i < kLanes; ++i) {
      out[2 * i] = pick(w[0][i], w[1][i]);
      out[2 * i + 1] = pick(w[2][i], w[3][i]);
    }
  });
}

template <class T>
constexpr int kElementsOfGroup = std::is_same_v<T, double> ? 2 : 4;

}  // namespace

template <class T>
void fill_uniform(RandomKey key, T* out, int64_t n) {
  fill_tiles<kElementsOfGroup<T>>(key, out, n, [](const Tile& tile, T* o) { uniforms(tile, o); });
}
template void fill_uniform(RandomKey, float*, int64_t);
template void fill_uniform(RandomKey, double*, int64_t);
template void fill_uniform(RandomKey, BFloat16*, int64_t);
template void fill_uniform(RandomKey, Float16*, int64_t);

template <class T>
void fill_normal(RandomKey key, T* out, int64_t n) {
  fill_tiles<kElementsOfGroup<T>>(key, out, n, [](const Tile& tile, T* o) { normals(tile, o); });
}
template void fill_normal(RandomKey, float*, int64_t);
template void fill_normal(RandomKey, double*, int64_t);
template void fill_normal(RandomKey, BFloat16*, int64_t);
template void fill_normal(RandomKey, Float16*, int64_t);

void fill_bernoulli(RandomKey key, double p, uint8_t* out, int64_t n) {
  if (!(p >= 0 && p <= 1))
    throw ValueError("fill_bernoulli: p must be a probability in [0, 1], but is {}", p);
  const auto below = static_cast<int32_t>(std::ceil(p * 0x1p24));
  fill_tiles<4>(key, out, n, [=](const Tile& tile, uint8_t* o) {
    for (int i = 0; i < kLanes; ++i)
      for (int w = 0; w < 4; ++w)
        o[4 * i + w] = static_cast<int32_t>(tile.words[w][i] >> 8) < below;
  });
}

void fill_integers(RandomKey key, int64_t low, int64_t high, int64_t* out, int64_t n) {
  fill_integers_as(key, low, high, out, n);
}

void fill_integers(RandomKey key, int64_t low, int64_t high, int32_t* out, int64_t n) {
  fill_integers_as(key, low, high, out, n);
}

}  // namespace norma
