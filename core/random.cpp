#include "norma/core/random.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

#include "norma/core/error.h"
#include "norma/core/parallel.h"
#include "norma/core/tensor.h"

namespace norma {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements: about 30 µs

__extension__ using Wide = unsigned __int128;

double uniform_double(uint32_t high, uint32_t low) {
  return static_cast<double>((uint64_t{high} << 32 | low) >> 11) * 0x1p-53;
}

/// ln x for a normal x > 0: with x = 2^e m, ln m = 2 artanh((m − 1)/(m + 1)), |s| ≤ 0.172.
double log_of(double x) {
  const uint64_t bits = std::bit_cast<uint64_t>(x) - 0x3FE6A09E667F3BCDu;  // √½
  const int64_t e = static_cast<int64_t>(bits) >> 52;
  const double m =
      std::bit_cast<double>(std::bit_cast<uint64_t>(x) - (static_cast<uint64_t>(e) << 52));
  const double s = (m - 1) / (m + 1), q = s * s;
  double sum = 0;
  for (int k = 11; k >= 0; --k) sum = sum * q + 1.0 / (2 * k + 1);
  return static_cast<double>(e) * 0.69314718055994530942 + 2 * s * sum;
}

/// Two independent normals of u in (0, 1] and v in [0, 1).
std::array<double, 2> normals(double u, double v) {
  const double r = std::sqrt(-2 * log_of(u));
  const auto quarter = static_cast<int>(v * 4 + 0.5);
  const double a = (v - quarter * 0.25) * 6.28318530717958647692, q = a * a;  // |a| ≤ π/4
  double sine = 1, cosine = 1;  // Taylor's series; the terms left out are below 2⁻⁵⁷
  for (int k = 9; k >= 1; --k) {
    sine = 1 - sine * q / (2 * k * (2 * k + 1));
    cosine = 1 - cosine * q / ((2 * k - 1) * (2 * k));
  }
  sine = sine * a;
  switch (quarter % 4) {
    case 0:
      return {r * cosine, r * sine};
    case 1:
      return {-r * sine, r * cosine};
    case 2:
      return {-r * cosine, -r * sine};
    default:
      return {r * sine, -r * cosine};
  }
}

/// Calls element(words, i of 4, index) for n elements, several threads.
template <class F>
void for_groups(RandomKey key, int64_t n, int width, const F& group) {
  const Split s = split(n, kGrain);
  parallel_for(s.blocks, [&](int64_t b) {
    for (int64_t i = s.begin(b); i < s.end(b); i += width)
      group(random_words(key, static_cast<uint64_t>(i / width)), i,
            std::min<int64_t>(width, s.end(b) - i));
  });
}

}  // namespace

void fill_uniform(RandomKey key, float* out, int64_t n) {
  for_groups(key, n, 4, [=](const std::array<uint32_t, 4>& w, int64_t i, int64_t count) {
    for (int64_t j = 0; j < count; ++j)
      out[i + j] = static_cast<float>(w[static_cast<size_t>(j)] >> 8) * 0x1p-24f;
  });
}

void fill_uniform(RandomKey key, double* out, int64_t n) {
  for_groups(key, n, 2, [=](const std::array<uint32_t, 4>& w, int64_t i, int64_t count) {
    out[i] = uniform_double(w[0], w[1]);
    if (count > 1) out[i + 1] = uniform_double(w[2], w[3]);
  });
}

void fill_normal(RandomKey key, float* out, int64_t n) {
  for_groups(key, n, 4, [=](const std::array<uint32_t, 4>& w, int64_t i, int64_t count) {
    const auto a = normals((w[0] + 1.0) * 0x1p-32, w[1] * 0x1p-32);
    const auto b = normals((w[2] + 1.0) * 0x1p-32, w[3] * 0x1p-32);
    const double four[] = {a[0], a[1], b[0], b[1]};
    for (int64_t j = 0; j < count; ++j) out[i + j] = static_cast<float>(four[j]);
  });
}

void fill_normal(RandomKey key, double* out, int64_t n) {
  for_groups(key, n, 2, [=](const std::array<uint32_t, 4>& w, int64_t i, int64_t count) {
    const auto pair = normals(uniform_double(w[0], w[1]) + 0x1p-53, uniform_double(w[2], w[3]));
    for (int64_t j = 0; j < count; ++j) out[i + j] = pair[static_cast<size_t>(j)];
  });
}

void fill_bernoulli(RandomKey key, double p, uint8_t* out, int64_t n) {
  for_groups(key, n, 4, [=](const std::array<uint32_t, 4>& w, int64_t i, int64_t count) {
    for (int64_t j = 0; j < count; ++j) out[i + j] = (w[static_cast<size_t>(j)] >> 8) * 0x1p-24 < p;
  });
}

namespace {

template <class Int>
void fill_integers_as(RandomKey key, int64_t low, int64_t high, Int* out, int64_t n) {
  const uint64_t count = static_cast<uint64_t>(high) - static_cast<uint64_t>(low);
  const auto pick = [=](uint32_t top, uint32_t bottom) {
    const uint64_t w = uint64_t{top} << 32 | bottom;
    const auto offset = static_cast<uint64_t>(static_cast<Wide>(w) * count >> 64);
    return static_cast<Int>(static_cast<uint64_t>(low) + offset);
  };
  for_groups(key, n, 2, [=](const std::array<uint32_t, 4>& w, int64_t i, int64_t width) {
    out[i] = pick(w[0], w[1]);
    if (width > 1) out[i + 1] = pick(w[2], w[3]);
  });
}

}  // namespace

void fill_integers(RandomKey key, int64_t low, int64_t high, int64_t* out, int64_t n) {
  fill_integers_as(key, low, high, out, n);
}

void fill_integers(RandomKey key, int64_t low, int64_t high, int32_t* out, int64_t n) {
  fill_integers_as(key, low, high, out, n);
}

Generator::Generator(uint64_t seed, std::string_view name) {
  uint64_t hash = seed ^ 0xCBF29CE484222325u;  // FNV-1a of the name, mixed by Philox
  for (char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  const auto w =
      philox({static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), 0, 0}, hash);
  state_.key = uint64_t{w[0]} << 32 | w[1];
}

RandomKey Generator::next() {
  if (std::this_thread::get_id() != owner_)
    throw GraphError(
        "random: a generator must draw on the thread that made it, but another drew; give that "
        "thread a Generator of its own");
  return {state_.key, state_.call, state_.ordinal++};
}

void Generator::begin_call() {
  outer_ordinal_ = state_.ordinal;
  state_.call = ++state_.calls;
  state_.ordinal = 0;
}

void Generator::end_call() {
  state_.call = 0;
  state_.ordinal = outer_ordinal_;
}

Generator& ambient_generator() {
  static Generator generator(0, "ambient");
  return generator;
}

void manual_seed(uint64_t seed) { ambient_generator() = Generator(seed, "ambient"); }

namespace {

/// A new tensor that fill(key, elements, n) has written, for half types through float32.
template <class Fill>
Tensor drawn(std::string_view where, const TensorSpec& spec, const Fill& fill) {
  if (!is_floating(spec.dtype))
    throw DTypeError("{}: the dtype must be a floating one, but is {}", where,
                     to_string(spec.dtype));
  Tensor t = empty(spec);
  const RandomKey key = ambient_generator().next();
  visit_floating(spec.dtype, [&]<class T>() {
    if constexpr (std::is_same_v<T, float> || std::is_same_v<T, double>) {
      fill(key, static_cast<T*>(t.data()), t.numel());
    } else {
      Tensor wide = empty(spec.shape, float32);
      fill(key, static_cast<float*>(wide.data()), t.numel());
      detail::copy_elements(wide, t);
    }
  });
  return t;
}

}  // namespace

Tensor randn(const Shape& shape, DType dtype, Device device) {
  return drawn("randn", {shape, dtype, device},
               [](RandomKey key, auto* out, int64_t n) { fill_normal(key, out, n); });
}

Tensor randn_like(const Tensor& t) { return randn(t.shape(), t.dtype(), t.device()); }

Tensor rand(const Shape& shape, DType dtype, Device device) {
  const float below_one = static_cast<float>(1 - unit_roundoff(dtype));
  return drawn("rand", {shape, dtype, device}, [=](RandomKey key, auto* out, int64_t n) {
    fill_uniform(key, out, n);
    if (size_of(dtype) == 2)
      for (int64_t i = 0; i < n; ++i) out[i] = std::min<float>(out[i], below_one);
  });
}

Tensor rand_like(const Tensor& t) { return rand(t.shape(), t.dtype(), t.device()); }

Tensor randint(int64_t low, int64_t high, const Shape& shape, DType dtype, Device device) {
  if (dtype != int32 && dtype != int64)
    throw DTypeError("randint: the dtype must be int32 or int64, but is {}", to_string(dtype));
  if (low >= high)
    throw ValueError("randint: low must be below high, but they are {} and {}", low, high);
  using Int32 = std::numeric_limits<int32_t>;
  if (dtype == int32 && (low < Int32::min() || high - 1 > Int32::max()))
    throw ValueError("randint: int32 does not hold [{}, {}); ask for int64", low, high);
  Tensor t = empty(shape, dtype, device);
  const RandomKey key = ambient_generator().next();
  visit_index(dtype, [&]<class T>() {
    fill_integers(key, low, high, static_cast<T*>(t.data()), t.numel());
  });
  return t;
}

}  // namespace norma
