#include "norma/core/random.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>
#include <thread>
#include <vector>

#include "norma/core/error.h"
#include "norma/core/parallel.h"
#include "norma/core/tensor.h"

namespace norma {
namespace {
using Words = std::array<uint32_t, 4>;

TEST(Random, PhiloxGivesTheKnownAnswersOfRandom123) {
  EXPECT_EQ(philox({0, 0, 0, 0}, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({~0u, ~0u, ~0u, ~0u}, ~uint64_t{0}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822u),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

template <class T>
class RandomFill : public ::testing::Test {};
using FloatingTypes = ::testing::Types<float, double, BFloat16, Float16>;
TYPED_TEST_SUITE(RandomFill, FloatingTypes);

template <class T>
std::vector<T> normals(int64_t n, RandomKey key = {1, 2, 3}) {
  std::vector<T> x(static_cast<size_t>(n));
  fill_normal(key, x.data(), n);
  return x;
}
template <class T>
std::vector<T> uniforms(int64_t n, RandomKey key = {1, 2, 3}) {
  std::vector<T> x(static_cast<size_t>(n));
  fill_uniform(key, x.data(), n);
  return x;
}

TYPED_TEST(RandomFill, AnyThreadCountGivesTheSameBits) {
  constexpr int64_t n = 200'003;
  const int before = num_threads();
  set_num_threads(1);
  const auto normal = normals<TypeParam>(n), uniform = uniforms<TypeParam>(n);
  set_num_threads(4);
  EXPECT_EQ(normals<TypeParam>(n), normal);
  EXPECT_EQ(uniforms<TypeParam>(n), uniform);
  set_num_threads(before);
}

TYPED_TEST(RandomFill, AShorterFillIsAPrefix) {
  const auto normal = normals<TypeParam>(300), uniform = uniforms<TypeParam>(300);
  for (int64_t n = 0; n < 300; ++n) {
    EXPECT_EQ(normals<TypeParam>(n), std::vector<TypeParam>(normal.begin(), normal.begin() + n));
    EXPECT_EQ(uniforms<TypeParam>(n), std::vector<TypeParam>(uniform.begin(), uniform.begin() + n));
  }
}

TYPED_TEST(RandomFill, NormalsHaveTheirMoments) {
  constexpr int64_t n = 200'003;
  double sum = 0, squares = 0, fourth = 0;
  for (TypeParam e : normals<TypeParam>(n)) {
    const double x = double(e);
    sum += x, squares += x * x, fourth += x * x * x * x;
  }
  // Five standard deviations, passed once in two million keys; rounding's own bias, of second
  // order in the roundoff, is far below.
  const double sigma = 1 / std::sqrt(double(n));
  EXPECT_NEAR(sum / double(n), 0, 5 * sigma);
  EXPECT_NEAR(squares / double(n), 1, 5 * std::sqrt(2.0) * sigma);
  EXPECT_NEAR(fourth / double(n), 3, 5 * std::sqrt(96.0) * sigma);
}

TYPED_TEST(RandomFill, UniformsHaveTheirMoments) {
  constexpr int64_t n = 200'003;
  double sum = 0, squares = 0;
  for (TypeParam e : uniforms<TypeParam>(n)) {
    const double x = double(e) - 0.5;
    sum += x, squares += x * x;
  }
  // Variances 1/12 and 1/80 − 1/144. What would round to 1 moves by u at most, with probability
  // u/2; and float's multiples of 2⁻²⁴ lie 2⁻²⁵ too low.
  const double sigma = 1 / std::sqrt(double(n)), u = unit_roundoff(dtype_of<TypeParam>);
  const double bias = u * u + 0x1p-25;
  EXPECT_NEAR(sum / double(n), 0, 5 * std::sqrt(1.0 / 12) * sigma + bias);
  EXPECT_NEAR(squares / double(n), 1.0 / 12, 5 * std::sqrt(1.0 / 80 - 1.0 / 144) * sigma + bias);
}

/// The largest distance of the sample's distribution function from `cdf`.
template <class T, class F>
double kolmogorov_smirnov(std::vector<T> x, const F& cdf) {
  std::sort(x.begin(), x.end());
  double distance = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double p = cdf(double(x[i])), n = double(x.size());
    distance = std::max({distance, p - double(i) / n, double(i + 1) / n - p});
  }
  return distance;
}

// √n times the distance exceeds 2.7 with probability 2 exp(−2 · 2.7²), once in a million keys.
template <class T>
void expect_right_distributions() {
  constexpr int64_t n = 1'000'000;
  EXPECT_LT(kolmogorov_smirnov(normals<T>(n),
                               [](double x) { return 0.5 * std::erfc(-x * std::sqrt(0.5)); }),
            2.7 / std::sqrt(double(n)));
  EXPECT_LT(kolmogorov_smirnov(uniforms<T>(n), [](double x) { return x; }),
            2.7 / std::sqrt(double(n)));
}
TEST(Random, FloatsFollowTheirDistributions) { expect_right_distributions<float>(); }
TEST(Random, DoublesFollowTheirDistributions) { expect_right_distributions<double>(); }

template <class T>
void expect_right_tails() {
  constexpr int64_t n = 4'000'000;
  const auto x = normals<T>(n);
  for (double bound : {1.0, 2.0, 3.0, 4.0, 4.5}) {
    SCOPED_TRACE(bound);
    const double tail = 0.5 * std::erfc(bound * std::sqrt(0.5));  // of one side: 3.4e-6 above 4.5
    const auto above = std::count_if(x.begin(), x.end(), [=](T e) { return e > bound; });
    const auto below = std::count_if(x.begin(), x.end(), [=](T e) { return e < -bound; });
    EXPECT_NEAR(double(above), tail * n, 5 * std::sqrt(tail * n));
    EXPECT_NEAR(double(below), tail * n, 5 * std::sqrt(tail * n));
  }
}
TEST(Random, FloatNormalsHaveTheirTails) { expect_right_tails<float>(); }
TEST(Random, DoubleNormalsHaveTheirTails) { expect_right_tails<double>(); }

TEST(Random, NeighboursAndStreamsAreUncorrelated) {
  constexpr size_t n = 200'000;
  const auto x = normals<float>(n + 8);
  const auto correlation = [&](const std::vector<float>& y, size_t lag) {
    double sum = 0;
    for (size_t i = 0; i < n; ++i) sum += double(x[i]) * double(y[i + lag]);
    return sum / double(n);
  };
  const double bound = 5 / std::sqrt(double(n));
  for (size_t lag = 1; lag <= 8; ++lag) EXPECT_NEAR(correlation(x, lag), 0, bound) << lag;
  for (RandomKey other : {RandomKey{2, 2, 3}, RandomKey{1, 3, 3}, RandomKey{1, 2, 4}})
    EXPECT_NEAR(correlation(normals<float>(n, other), 0), 0, bound);
}

TEST(Random, FloatNormalsHaveTheBitsOfAnotherImplementation) {
  // The same formulas, one rounded operation at a time, in NumPy's float32.
  EXPECT_EQ(normals<float>(8),
            (std::vector<float>{-0x1.9f434ep+0f, 0x1.1fb7cp+0f, 0x1.c83982p-1f, 0x1.417c2cp+0f,
                                -0x1.7395a6p-2f, 0x1.3c5e8ap-1f, -0x1.4121cap+0f, 0x1.4ee916p+0f}));
}

TEST(Random, DoubleNormalsAreBoxAndMullersOfTheUniforms) {
  constexpr int64_t n = 100'000;
  const auto z = normals<double>(2 * n);
  for (int64_t i = 0; i < n; ++i) {
    const auto w = random_words({1, 2, 3}, uint64_t(i));
    const double u = double((uint64_t{w[0]} << 32 | w[1]) >> 11) * 0x1p-53 + 0x1p-53;
    const double v = double((uint64_t{w[2]} << 32 | w[3]) >> 11) * 0x1p-53;
    const double r = std::sqrt(-2 * std::log(u)), angle = 2 * std::numbers::pi * v;
    // Ours: 4 roundoffs of r, measured. Here: 3 for r, and the angle's two, which move up to 2π.
    const double tolerance = (4 + 3 + 2 * 2 * std::numbers::pi) * 0x1p-53 * r;
    ASSERT_NEAR(z[size_t(2 * i)], r * std::cos(angle), tolerance);
    ASSERT_NEAR(z[size_t(2 * i + 1)], r * std::sin(angle), tolerance);
  }
}

TEST(Random, BernoulliIsTheUniformBelowP) {
  constexpr int64_t n = 100'001;
  std::vector<uint8_t> mask(n);
  for (double p : {0.0, 0x1p-24, 0.1, 0.5, 1 - 0x1p-30, 1.0}) {
    SCOPED_TRACE(p);
    fill_bernoulli({8, 1, 2}, p, mask.data(), n);
    double count = 0;
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_EQ(mask[size_t(i)], double(uniform_at({8, 1, 2}, i)) < p);
      count += mask[size_t(i)];
    }
    // Five standard deviations; p counts in steps of 2⁻²⁴.
    EXPECT_NEAR(count, p * n, 5 * std::sqrt(p * (1 - p) * n) + n * 0x1p-24);
  }
}

TEST(Random, UniformElementsAreTheFills) {
  std::vector<float> x(40'001);
  fill_uniform({5, 0, 1}, x.data(), 40'001);
  for (int64_t i = 0; i < 40'001; ++i) {
    ASSERT_EQ(x[size_t(i)], uniform_at({5, 0, 1}, i));
    ASSERT_TRUE(x[size_t(i)] >= 0 && x[size_t(i)] < 1);
  }
}

template <class Error, class F>
std::string message_of(const F& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "nothing was thrown";
}

TEST(Random, FactoriesFillWithTheAmbientGeneratorsNextKey) {
  manual_seed(11);
  const RandomKey first = Generator(11, "ambient").next();
  std::vector<float> x(6);
  fill_normal(first, x.data(), 6);
  const Tensor t = randn({2, 3});
  EXPECT_EQ(t.spec(), (TensorSpec{{2, 3}, float32, default_device()}));
  EXPECT_EQ(t.to_vector<float>(), x);
  EXPECT_NE(randn({2, 3}).to_vector<float>(), x);
  manual_seed(11);
  EXPECT_EQ(randn_like(t).to_vector<float>(), x);
  manual_seed(11);
  std::vector<int64_t> i(6);
  fill_integers(first, -3, 9, i.data(), 6);
  EXPECT_EQ(randint(-3, 9, {6}).to_vector<int64_t>(), i);
  EXPECT_EQ(rand({0, 3}, float64).numel(), 0);
}

TEST(Random, HalfNormalsAreTheFloatOnesRounded) {
  for (DType half : {bfloat16, float16}) {
    manual_seed(3);
    Tensor wide = randn({1000});
    manual_seed(3);
    Tensor rounded = zeros({1000}, half);
    rounded.copy_(wide);
    EXPECT_EQ(randn({1000}, half).to_vector<float>(), rounded.to_vector<float>());
  }
}

TEST(Random, UniformsStayBelowOneInEveryDType) {
  for (DType dtype : {float32, float64, bfloat16, float16}) {
    SCOPED_TRACE(to_string(dtype));
    manual_seed(5);
    const auto x = rand({20'000}, dtype).to_vector<double>();
    EXPECT_GE(*std::min_element(x.begin(), x.end()), 0);
    // Rounding alone would give 1 to each that is above 1 − u/2: 39 of these for bfloat16.
    EXPECT_LT(*std::max_element(x.begin(), x.end()), 1);
    EXPECT_GE(*std::max_element(x.begin(), x.end()), 1 - 0x1p-8);
  }
}

TEST(Random, IntegersReachBothEndsAndNoFurther) {
  manual_seed(2);
  for (DType dtype : {int32, int64}) {
    std::array<int, 7> seen{};
    for (int64_t v : randint(-3, 4, {7000}, dtype).to_vector<int64_t>()) {
      ASSERT_TRUE(v >= -3 && v < 4) << v;
      ++seen[size_t(v + 3)];
    }
    // Five standard deviations of a binomial count with p = 1/7.
    for (int count : seen) EXPECT_NEAR(count, 1000, 5 * std::sqrt(7000.0 * 6 / 49));
  }
}

TEST(Random, IntegersAreTheHighHalfOfAProduct) {
  std::vector<int64_t> x(2);
  fill_integers({5, 0, 1}, -10, 1'000'000'007, x.data(), 2);
  const auto w = random_words({5, 0, 1}, 0);
  // Long double has 64 bits: the quotient's floor is right but for a product next to an integer.
  for (size_t i = 0; i < 2; ++i) {
    const auto word = static_cast<long double>(uint64_t{w[2 * i]} << 32 | w[2 * i + 1]);
    EXPECT_EQ(x[i], -10 + int64_t(word * 0x1p-64L * 1'000'000'017.0L));
  }
}

TEST(Random, IntegersCoverTheWholeRangeOfInt64) {
  using Int64 = std::numeric_limits<int64_t>;
  std::vector<int64_t> x(4000);
  fill_integers({1, 0, 0}, Int64::min(), Int64::max(), x.data(), 4000);
  EXPECT_LT(*std::min_element(x.begin(), x.end()), Int64::min() / 100 * 99);
  EXPECT_GT(*std::max_element(x.begin(), x.end()), Int64::max() / 100 * 99);
}

TEST(Random, BothIntegerTypesDrawTheSameNumbers) {
  manual_seed(9);
  const auto wide = randint(-1000, 1000, {501}, int64).to_vector<int64_t>();
  manual_seed(9);
  EXPECT_EQ(randint(-1000, 1000, {501}, int32).to_vector<int64_t>(), wide);
}

TEST(Random, WrongArgumentsOfTheFactoriesAreNamed) {
  EXPECT_EQ(message_of<DTypeError>([] { randn({2}, int32); }),
            "randn: the dtype must be a floating one, but is int32");
  EXPECT_EQ(message_of<DTypeError>([] { randint(0, 2, {2}, float32); }),
            "randint: the dtype must be int32 or int64, but is float32");
  EXPECT_EQ(message_of<ValueError>([] { randint(5, 5, {2}); }),
            "randint: low must be below high, but they are 5 and 5");
  EXPECT_EQ(message_of<ValueError>([] { randint(0, 2147483649, {2}, int32); }),
            "randint: int32 does not hold [0, 2147483649); ask for int64");
  uint8_t mask;
  EXPECT_EQ(message_of<ValueError>([&] { fill_bernoulli({}, 1.5, &mask, 1); }),
            "fill_bernoulli: p must be a probability in [0, 1], but is 1.5");
  EXPECT_EQ(message_of<ValueError>([&] { fill_bernoulli({}, NAN, &mask, 1); }),
            "fill_bernoulli: p must be a probability in [0, 1], but is nan");
}

TEST(Random, CapturedCallsLeaveTheOuterOrdinalsAlone) {
  Generator g(7, "test");
  EXPECT_EQ(g.next().ordinal, 0u);
  g.begin_call();
  EXPECT_EQ(g.next(), (RandomKey{g.state().key, 1, 0}));
  g.end_call();
  EXPECT_EQ(g.next(), (RandomKey{g.state().key, 0, 1}));
  EXPECT_NE(Generator(7, "data").state().key, g.state().key);
}

TEST(Random, ARestoredStateDrawsOnAsBefore) {
  Generator g(7, "test");
  g.next();
  g.begin_call();
  g.end_call();
  const GeneratorState state = g.state();
  const RandomKey next = g.next();
  g.begin_call();
  const RandomKey captured = g.next();
  Generator other(8, "other");
  other.set_state(state);
  EXPECT_EQ(other.next(), next);
  other.begin_call();
  EXPECT_EQ(other.next(), captured);
}

/// What f throws on another thread.
template <class F>
std::string message_elsewhere(const F& f) {
  std::string message;
  std::thread([&] { message = message_of<GraphError>(f); }).join();
  return message;
}

TEST(Random, DrawingFromTheAmbientGeneratorOnAnotherThreadIsNamed) {
  manual_seed(1);
  EXPECT_EQ(message_elsewhere([] { randn({2}); }),
            "random: the ambient generator belongs to the thread that first used or last seeded "
            "it, but another drew; give that thread a Generator of its own");
}

TEST(Random, AGeneratorOfOnesOwnDrawsOnAnyThread) {
  Generator g(0, "test");
  EXPECT_EQ(message_elsewhere([&] { g.next(); }), "nothing was thrown");
  EXPECT_EQ(g.next().ordinal, 1u);
}
}  // namespace
}  // namespace norma
