#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <string_view>

#include "norma/core/tensor.h"
#include "norma/ops/derivative/gradcheck.h"

namespace norma::testing {

/// |actual − expected| ≤ absolute + relative · |expected| for each element. NaN fits NaN, an
/// infinity fits itself. `actual` is rounded from expected's exact value: derive both bounds.
struct Closeness {
  double relative = 0, absolute = 0;
};
::testing::AssertionResult close(const Tensor& actual, const Tensor& expected,
                                 const Closeness& closeness);
/// Same shape, dtype and bits; NaNs of any payload are the same.
::testing::AssertionResult same_bits(const Tensor& a, const Tensor& b);
::testing::AssertionResult passed(const GradcheckReport& report);

inline constexpr double kInf = std::numeric_limits<double>::infinity();
inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

using FloatingTypes = ::testing::Types<float, double, BFloat16, Float16>;

}  // namespace norma::testing

#define EXPECT_CLOSE(actual, expected, ...) \
  EXPECT_TRUE(::norma::testing::close(actual, expected, ::norma::testing::Closeness __VA_ARGS__))
#define EXPECT_SAME_BITS(a, b) EXPECT_TRUE(::norma::testing::same_bits(a, b))
#define EXPECT_OK(report) EXPECT_TRUE(::norma::testing::passed(report))
/// The statement throws exactly that type with exactly that text.
#define EXPECT_THROW_MSG(statement, Type, text)                   \
  try {                                                           \
    statement;                                                    \
    ADD_FAILURE() << #statement << " threw nothing";              \
  } catch (const Type& error) {                                   \
    EXPECT_EQ(std::string_view(error.what()), std::string(text)); \
  }
