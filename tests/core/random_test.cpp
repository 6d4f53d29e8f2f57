#include "norma/core/random.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
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
void expect_normal_bits_and_moments() {
  constexpr int64_t n = 200'003;
  std::vector<T> one(n), four(n);
  const int before = num_threads();
  set_num_threads(1);
  fill_normal({1, 2, 3}, one.data(), n);
  set_num_threads(4);
  fill_normal({1, 2, 3}, four.data(), n);
  set_num_threads(before);
  EXPECT_EQ(one, four);
  double sum = 0, squares = 0, fourth = 0;
  for (T x : one)
    sum += double(x), squares += double(x) * double(x), fourth += std::pow(double(x), 4);
  const double sigma = 1 / std::sqrt(double(n));  // five of them: once in two million keys
  EXPECT_NEAR(sum / double(n), 0, 5 * sigma);
  EXPECT_NEAR(squares / double(n), 1, 5 * std::sqrt(2.0) * sigma);
  EXPECT_NEAR(fourth / double(n), 3, 5 * std::sqrt(96.0) * sigma);
}
TEST(Random, FloatNormalsHaveTheirMomentsAtAnyThreadCount) {
  expect_normal_bits_and_moments<float>();
}
TEST(Random, DoubleNormalsHaveTheirMomentsAtAnyThreadCount) {
  expect_normal_bits_and_moments<double>();
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
  EXPECT_EQ(t.spec(), (TensorSpec{{2, 3}, float32, cpu}));
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

TEST(Random, DrawingOnAnotherThreadIsNamed) {
  Generator g(0, "test");
  std::string message;
  std::thread([&] {
    try {
      g.next();
    } catch (const GraphError& e) {
      message = e.what();
    }
  }).join();
  EXPECT_EQ(message,
            "random: a generator must draw on the thread that made it, but another drew; give that "
            "thread a Generator of its own");
}
}  // namespace
}  // namespace norma
