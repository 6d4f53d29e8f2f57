#pragma once

#include "norma/ops/norm/norm.h"

namespace norma {

struct RmsNormOptions {
  double eps = 1e-6;           ///< inside the root
  int64_t group = 0;           ///< elements that share statistics; 0: the whole row
  bool zero_centered = false;  ///< the weight is stored less 1
  Casting casting = Casting::wide;
  std::optional<DType> out_dtype = none;  ///< of y; absent: x's
  NormSaves saves = NormSaves::input;     ///< what the backward starts from
  bool portable = false;                  ///< weight gradients the same bits on any GPU
  bool precise = false;                   ///< weight gradients by compensated sums
  NormProbe* probe = nullptr;             ///< the backward fills it; must live until then
};

/// RMSNorm over the last dimension, of length D (Zhang & Sennrich 2019, arXiv:1910.07467):
///   y = w ⊙ x̂,  x̂ = x · rstd,  rstd = 1/√(mean(x²) + eps)
///   dx = rstd · (g − x̂ · mean(g ⊙ x̂)) with g = w ⊙ dy;  dw = Σ_rows dy ⊙ x̂
/// See Norm for shapes, dtypes, errors and the other members of the family.
Tensor rms_norm(const Tensor& x, const std::optional<Tensor>& w = none,
                const RmsNormOptions& options = {});

struct Added {
  Tensor y, h;
};
/// h = x + residual and its norm y: the sum and the norm in one pass. The residual, and h with it,
/// may be float32 where x is a half type.
Added add_rms_norm(const Tensor& x, const Tensor& residual, const std::optional<Tensor>& w = none,
                   const RmsNormOptions& options = {});

}  // namespace norma
