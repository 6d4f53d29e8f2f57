#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "norma/ops/elementwise/lanes32_cpu.h"
#include "norma/ops/norm/options.h"

namespace norma::detail {

// Statistics of a row by the processor. Sums run in 32 lanes, the same for every processor, in
// leaves of 512 elements that are then added pairwise: an order that follows from n alone.

inline constexpr int64_t kLeaf = 512;  // 16 adds a lane

/// The sum over leaf(first, count) of n elements from `first` on, added pairwise.
template <class Leaf>
[[gnu::noinline]] auto sum_of_halves(int64_t first, int64_t n, const Leaf& leaf)
    -> decltype(leaf(first, n)) {
  int64_t left = kLeaf;
  while (left * 2 < n) left *= 2;
  const auto half = [&](int64_t from, int64_t count) {
    return count <= kLeaf ? leaf(from, count) : sum_of_halves(from, count, leaf);
  };
  // One after the other: g++ would begin with the second, and memory is read best as it lies.
  const auto sum = half(first, left);
  return sum + half(first + left, n - left);
}
template <class Leaf>
auto sum_of_leaves(int64_t n, const Leaf& leaf) {
  return n <= kLeaf ? leaf(int64_t{0}, n) : sum_of_halves(0, n, leaf);
}

/// Σ f(u…). f of zeros must be 0.
template <class Acc, class F, class... U>
Acc sum_of(int64_t n, const F& f, const U*... u) {
  return sum_of_leaves(n, [=](int64_t first, int64_t count) {
    Lanes32<Acc> sum;
    for_each32(count, [&](int64_t i, auto some) { sum += f(load32(u + first + i, some)...); });
    return sum.total();
  });
}

/// x̂ = ((scale · u − mean) − mean_rest) · rstd. scale is 1, or the power of two by which a row was
/// multiplied whose squares leave the range of Acc.
template <class Acc>
struct Stats {
  Acc mean = 0, mean_rest = 0, rstd = 0, scale = 1;
};
/// Before the root: the sum of squares about the mean.
template <class Acc>
struct Moments {
  Acc mean = 0, mean_rest = 0, squares = 0;
};

/// Running means in lanes: each step is a division and three products for 32 elements at once.
template <class Acc>
Moments<Acc> welford(const Acc* u, int64_t n) {
  Acc mean[kLanes32] = {}, m2[kLanes32] = {};
  int64_t count[kLanes32] = {};
  const auto step = [&](int64_t c, int j, Acc inverse) {
    const Acc delta = u[c + j] - mean[j];
    mean[j] += delta * inverse;
    m2[j] += delta * (u[c + j] - mean[j]);
  };
  int64_t c = 0;
  for (; c + kLanes32 <= n; c += kLanes32) {
    const Acc inverse = Acc(1) / static_cast<Acc>(c / kLanes32 + 1);
    for (int j = 0; j < kLanes32; ++j) step(c, j, inverse);
  }
  const Acc inverse = Acc(1) / static_cast<Acc>(c / kLanes32 + 1);
  for (int j = 0; j < kLanes32; ++j) {
    count[j] = c / kLanes32 + (c + j < n);
    if (c + j < n) step(c, j, inverse);
  }
  for (int half = kLanes32 / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) {
      const int64_t both = count[j] + count[j + half];
      if (both == 0) continue;
      const Acc delta = mean[j + half] - mean[j];
      const Acc share = static_cast<Acc>(count[j + half]) / static_cast<Acc>(both);
      m2[j] += m2[j + half] + delta * delta * share * static_cast<Acc>(count[j]);
      mean[j] += delta * share;
      count[j] = both;
    }
  return {mean[0], Acc(0), m2[0]};
}

template <class Acc>
Moments<Acc> moments(const Acc* u, int64_t n, const NormOptions& o) {
  if (o.kind != NormKind::layer)
    return {0, 0,
            sum_of<Acc>(
                n, [](const auto& v) { return v * v; }, u)};
  if (o.variance == Variance::welford) return welford(u, n);
  const Acc size = static_cast<Acc>(n);
  const Acc mean = sum_of<Acc>(
                       n, [](const auto& v) { return v; }, u) /
                   size;
  // Σ c and Σ c² of c = u − mean, in one pass: Σ c is what the mean's rounding left over.
  const Totals<Acc> about = sum_of_leaves(n, [=](int64_t first, int64_t count) {
    Lanes32<Acc> sum, squares;
    for_each32(count, [&](int64_t i, auto some) {
      const Lanes32<Acc> c = load32(u + first + i, some, mean) - mean;
      sum += c;
      squares += c * c;
    });
    return totals(sum, squares);
  });
  const Acc rest = about.a / size;
  return {mean, rest, std::max(about.b - about.a * rest, about.b * 0)};  // keeps NaN
}
/// Of moments within the range of Acc.
template <class Acc>
Stats<Acc> statistics_of(const Moments<Acc>& m, int64_t n, const NormOptions& o) {
  const Acc size = o.kind == NormKind::l2 ? Acc(1) : static_cast<Acc>(n);
  return {m.mean, m.mean_rest, 1 / std::sqrt(m.squares / size + static_cast<Acc>(o.eps)), 1};
}

/// Whether a sum of squares has left the range of Acc, or so nearly vanished that it and eps have
/// lost digits.
template <class Acc>
bool out_of_range(Acc squares, double eps) {
  constexpr bool wide = std::numeric_limits<Acc>::digits > 24;
  constexpr Acc lowest = wide ? Acc(1e-290) : Acc(1e-30F);
  return !(squares <= std::numeric_limits<Acc>::max()) ||
         (squares < lowest && eps < (wide ? 1e-280 : 1e-20));
}

/// The power of two that brings the largest |u| near 1; 1 where that is 0, infinite or NaN.
template <class Acc>
Acc scale_of(const Acc* u, int64_t n) {
  Acc largest = 0;
  for (int64_t c = 0; c < n; ++c)
    if (!(std::abs(u[c]) <= largest)) largest = std::abs(u[c]);
  if (largest == 0 || !(largest <= std::numeric_limits<Acc>::max())) return 1;
  constexpr int kMost = std::numeric_limits<Acc>::max_exponent - 2;
  return std::ldexp(Acc(1), std::clamp(-std::ilogb(largest), -kMost, kMost));
}

/// Statistics of n elements. Where their squares leave the range of Acc, u moves to `buffer`, where
/// the row then stands scaled.
template <class Acc>
Stats<Acc> statistics(const Acc*& u, int64_t n, const NormOptions& o, Acc* buffer) {
  const double size = o.kind == NormKind::l2 ? 1 : static_cast<double>(n);
  Moments<Acc> m = moments(u, n, o);
  if (out_of_range(m.squares, o.eps)) {
    const Acc scale = scale_of(u, n);
    if (scale != 1) {
      for (int64_t c = 0; c < n; ++c) buffer[c] = u[c] * scale;
      u = buffer;
      m = moments(u, n, o);
      // hypot: the scaled eps may itself leave the range.
      const double deviation = std::sqrt(static_cast<double>(m.squares) / size);
      const double root = std::hypot(deviation, static_cast<double>(scale) * std::sqrt(o.eps));
      // A constant row's own rstd may be too large for Acc; 0 times the largest number is 0 too.
      const double largest = root > 0 ? std::numeric_limits<Acc>::max() : INFINITY;
      return {m.mean, m.mean_rest, static_cast<Acc>(std::min(1 / root, largest)), scale};
    }
  }
  return statistics_of(m, n, o);
}

}  // namespace norma::detail
