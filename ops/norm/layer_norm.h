#pragma once

#include "norma/ops/norm/rms_norm.h"

namespace norma {

struct LayerNormOptions {
  double eps = 1e-5;           ///< inside the root
  int64_t group = 0;           ///< elements that share statistics; 0: the whole row
  bool zero_centered = false;  ///< the weight is stored less 1
  Casting casting = Casting::wide;
  Variance variance = Variance::two_pass;
  std::optional<DType> out_dtype = none;  ///< of y; absent: x's
  NormSaves saves = NormSaves::input;     ///< what the backward starts from
  bool portable = false;                  ///< weight gradients the same bits on any GPU
  bool precise = false;                   ///< weight gradients by compensated sums
  NormProbe* probe = nullptr;             ///< the backward fills it; must live until then
};

/// LayerNorm over the last dimension, of length D (Ba, Kiros & Hinton 2016, arXiv:1607.06450):
///   y = w ⊙ x̂ + b,  x̂ = (x − mean) · rstd,  rstd = 1/√(mean((x − mean)²) + eps)
///   dx = rstd · (g − mean(g) − x̂ · mean(g ⊙ x̂)) with g = w ⊙ dy
///   dw = Σ_rows dy ⊙ x̂,  db = Σ_rows dy
/// See Norm for shapes, dtypes, errors and the other members of the family.
Tensor layer_norm(const Tensor& x, const std::optional<Tensor>& w = none,
                  const std::optional<Tensor>& b = none, const LayerNormOptions& options = {});

/// h = x + residual and its norm y: the sum and the norm in one pass.
Added add_layer_norm(const Tensor& x, const Tensor& residual, const std::optional<Tensor>& w = none,
                     const std::optional<Tensor>& b = none, const LayerNormOptions& options = {});

}  // namespace norma
