#pragma once

#include "norma/ops/norm/norm.h"

namespace norma {

struct GatedNormOptions {
  GateOrder order = GateOrder::norm_then_gate;
  NormKind kind = NormKind::rms;
  GateActivation activation = GateActivation::silu;
  double beta = 1;             ///< of swish
  double eps = 1e-5;           ///< inside the root
  int64_t group = 0;           ///< elements that share statistics, as in Mamba-2; 0: the whole row
  bool zero_centered = false;  ///< the weight is stored less 1
  Casting casting = Casting::wide;
  std::optional<DType> out_dtype = none;  ///< of y; absent: x's
  NormSaves saves = NormSaves::input;     ///< what the backward starts from
  bool portable = false;                  ///< weight gradients the same bits on any GPU
  bool precise = false;                   ///< weight gradients by compensated sums
  NormProbe* probe = nullptr;             ///< the backward fills it; must live until then
};

/// A norm with a gate z, by SiLU or another activation, as in Mamba-2 (Dao & Gu 2024,
/// arXiv:2405.21060):
///   norm_then_gate  y = norm(x) ⊙ silu(z)
///   gate_then_norm  y = norm(x ⊙ silu(z)), Mamba-2's own order
/// Only the gate-first norm ignores the scale of the gated product. See Norm for gradients, shapes,
/// dtypes and errors.
Tensor gated_norm(const Tensor& x, const Tensor& z, const std::optional<Tensor>& w = none,
                  const std::optional<Tensor>& b = none, const GatedNormOptions& options = {});

}  // namespace norma
