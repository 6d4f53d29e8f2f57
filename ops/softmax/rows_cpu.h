#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "norma/ops/elementwise/packets_cpu.h"

namespace norma::detail {

inline constexpr int kRowLanes = 32;  // the same for every processor, and so are the bits

/// combine over f(0) … f(n − 1) in lanes, then across the lanes.
template <class Acc, class Combine, class F>
Acc reduce_lanes(int64_t n, Acc identity, const Combine& combine, const F& f) {
  Acc lanes[kRowLanes];
  std::fill_n(lanes, kRowLanes, identity);
  int64_t c = 0;
  for (; c + kRowLanes <= n; c += kRowLanes)
    for (int j = 0; j < kRowLanes; ++j) lanes[j] = combine(lanes[j], f(c + j));
  for (int j = 0; c + j < n; ++j) lanes[j] = combine(lanes[j], f(c + j));
  for (int half = kRowLanes / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) lanes[j] = combine(lanes[j], lanes[j + half]);
  return lanes[0];
}
template <class Acc, class F>
Acc sum_lanes(int64_t n, const F& f) {
  return reduce_lanes<Acc>(
      n, 0, [](Acc a, Acc b) { return a + b; }, f);
}
template <class Acc>
Acc max_lanes(const Acc* x, int64_t n) {
  return reduce_lanes<Acc>(
      n, -std::numeric_limits<Acc>::infinity(),
      [](Acc a, Acc b) {  // NaN wins
        const Acc larger = b > a ? b : a;
        return b != b ? b : larger;
      },
      [&](int64_t c) { return x[c]; });
}

template <class Acc>
struct Exponentials {
  Acc shift, sum;
  Acc lse() const { return std::log(sum) + shift; }
};
/// e = exp(x − max(x)) and their sum. A row of −∞ alone shifts by 0.
template <class Acc>
Exponentials<Acc> exponentials(const Acc* x, int64_t n, Acc* e) {
  const Acc largest = max_lanes(x, n);
  const Acc shift = largest == -std::numeric_limits<Acc>::infinity() ? Acc(0) : largest;
  map_packets(
      n, e, [&](const auto& v) { return exp_of(v - shift); }, x);
  return {shift, sum_lanes<Acc>(n, [&](int64_t c) { return e[c]; })};
}

}  // namespace norma::detail
