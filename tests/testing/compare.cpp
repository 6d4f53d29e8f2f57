#include "testing/compare.h"

#include <cmath>
#include <cstring>

namespace norma::testing {
namespace {

::testing::AssertionResult like(const Tensor& a, const Tensor& b) {
  if (a.shape() == b.shape()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << "shapes " << to_string(a.shape()) << " and " << to_string(b.shape());
}

/// Every float is a double, every integer and bool an int64_t.
template <class Wide>
::testing::AssertionResult same_elements(const Tensor& a, const Tensor& b) {
  const auto u = a.to_vector<Wide>(), v = b.to_vector<Wide>();
  for (size_t i = 0; i < u.size(); ++i) {
    if (u[i] != u[i] && v[i] != v[i]) continue;
    if (std::memcmp(&u[i], &v[i], sizeof(Wide)) != 0)
      return ::testing::AssertionFailure() << "element " << i << " of " << to_string(a.shape())
                                           << ": " << u[i] << " and " << v[i];
  }
  return ::testing::AssertionSuccess();
}

}  // namespace

::testing::AssertionResult close(const Tensor& actual, const Tensor& expected, const Closeness& c) {
  if (auto fits = like(actual, expected); !fits) return fits;
  const auto a = actual.to_vector<double>(), b = expected.to_vector<double>();
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    if (a[i] == b[i]) continue;  // infinities too
    const double difference = std::abs(a[i] - b[i]),
                 bound = c.absolute + c.relative * std::abs(b[i]);
    if (!(difference <= bound) || std::isinf(b[i]))
      return ::testing::AssertionFailure()
             << "element " << i << " of " << to_string(actual.shape()) << ": " << a[i]
             << " instead of " << b[i] << ", off by " << difference << ", allowed " << bound;
  }
  return ::testing::AssertionSuccess();
}

::testing::AssertionResult same_bits(const Tensor& a, const Tensor& b) {
  if (auto fits = like(a, b); !fits) return fits;
  if (a.dtype() != b.dtype())
    return ::testing::AssertionFailure()
           << "dtypes " << to_string(a.dtype()) << " and " << to_string(b.dtype());
  return is_floating(a.dtype()) ? same_elements<double>(a, b) : same_elements<int64_t>(a, b);
}

::testing::AssertionResult passed(const GradcheckReport& report) {
  if (report) return ::testing::AssertionSuccess() << report.text;
  return ::testing::AssertionFailure() << report.text;
}

}  // namespace norma::testing
