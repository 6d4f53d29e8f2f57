#pragma once

#include <cstdint>
#include <optional>

#include "norma/core/dtype.h"
#include "norma/core/philox.h"

namespace norma {

/// What rstd is: 1/√(mean(c²) + eps), of c = u or c = u − mean(u), or for l2 1/√(Σ u² + eps).
enum class NormKind { rms, layer, l2 };
/// Where a gate z stands: norm(x) ⊙ s(z), norm(x ⊙ s(z)), or nowhere.
enum class GateOrder { no_gate, norm_then_gate, gate_then_norm };
/// s(z) of the gate: z σ(z), σ(z), z σ(βz), z Φ(z), or z itself.
enum class GateActivation { silu, sigmoid, swish, gelu, identity };
/// How LayerNorm finds its variance; both keep the statistics exact under a large mean.
///   two_pass  mean((u − mean)²) less the square of what the mean's own rounding left over
///   welford   one pass of running means (Welford 1962, doi:10.1080/00401706.1962.10490022) in 32
///             lanes, merged pairwise (Chan, Golub & LeVeque 1983,
///             doi:10.1080/00031305.1983.10483115)
enum class Variance { two_pass, welford };
/// wide: float32 (float64 for float64) from x to the one rounding of y. rounded: x̂ is rounded to
/// x's dtype before the weight multiplies it, as LLaMA's reference does.
enum class Casting { wide, rounded };
/// What the backward of a norm starts from: h, or x̂ rounded to x's dtype where h is not alive
/// otherwise. Never y: a weight of 0 would hide x̂.
enum class NormSaves { input, x_hat };

struct NormProbe;

struct NormOptions {
  NormKind kind = NormKind::rms;
  GateOrder gate = GateOrder::no_gate;
  GateActivation activation = GateActivation::silu;
  double beta = 1;             ///< of swish
  double eps = 1e-6;           ///< inside the root
  int64_t group = 0;           ///< elements that share statistics; must divide D; 0: all D
  bool zero_centered = false;  ///< the weights are stored less 1
  Casting casting = Casting::wide;
  Variance variance = Variance::two_pass;
  std::optional<DType> out_dtype = std::nullopt;  ///< of y; absent: x's
  std::optional<DType> h_dtype = std::nullopt;    ///< of h; absent: the residual's, else x's
  double dropout = 0;                             ///< probability that an element of x becomes 0
  RandomKey key = {};                             ///< of the mask; element i·D + c
  NormSaves saves = NormSaves::input;
  /// The result h is there also where it is x itself: a residual stream that goes on from x by it
  /// has its gradient added by the norm's backward, not by a pass of its own.
  bool passes_x = false;
  bool portable = false;       ///< weight gradients the same bits on any number of multiprocessors
  bool precise = false;        ///< weight gradients by compensated sums
  NormProbe* probe = nullptr;  ///< the backward fills it; must live until then
  bool operator==(const NormOptions&) const = default;
};

}  // namespace norma
