#include "norma/core/random.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "norma/core/error.h"
#include "norma/core/parallel.h"

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
