#pragma once

#include <algorithm>
#include <cstdint>
#include <numbers>

#include "norma/ops/elementwise/packets_cpu.h"
#include "norma/ops/norm/options.h"

namespace norma::detail {

/// s(z), and its slope where somebody wants it.
template <class Acc>
void activate(const NormOptions& o, const Acc* z, int64_t n, Acc* gate, Acc* slope) {
  const auto sigmoid = [&](Acc beta) {
    map_packets(
        n, gate, [&](const auto& v) { return (Acc(1) / (Acc(1) + exp_of(-beta * v))).eval(); }, z);
  };
  switch (o.activation) {
    case GateActivation::silu:
    case GateActivation::swish: {
      const Acc beta = o.activation == GateActivation::swish ? static_cast<Acc>(o.beta) : Acc(1);
      sigmoid(beta);
      if (slope)
        for (int64_t c = 0; c < n; ++c) slope[c] = gate[c] * (1 + beta * z[c] * (1 - gate[c]));
      for (int64_t c = 0; c < n; ++c) gate[c] *= z[c];
      break;
    }
    case GateActivation::sigmoid:
      sigmoid(1);
      if (slope)
        for (int64_t c = 0; c < n; ++c) slope[c] = gate[c] * (1 - gate[c]);
      break;
    case GateActivation::gelu: {
      const auto cdf = [](const auto& v) {
        return (Acc(0.5) * (Acc(1) + (v * Acc(1 / std::numbers::sqrt2)).erf())).eval();
      };
      constexpr Acc density = Acc(std::numbers::inv_sqrtpi / std::numbers::sqrt2);
      if (slope)
        map_packets(
            n, slope,
            [&](const auto& v) {
              return (cdf(v) + v * exp_of(Acc(-0.5) * v.square()) * density).eval();
            },
            z);
      map_packets(
          n, gate, [&](const auto& v) { return (v * cdf(v)).eval(); }, z);
      break;
    }
    case GateActivation::identity:
      std::copy_n(z, n, gate);
      if (slope) std::fill_n(slope, n, Acc(1));
      break;
  }
}

}  // namespace norma::detail
