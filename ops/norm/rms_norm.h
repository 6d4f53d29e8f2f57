#pragma once

#include "norma/ops/norm/norm.h"

namespace norma {

struct RmsNormOptions {
  double eps = 1e-6;           ///< inside the root
  int64_t group = 0;           ///< elements that share statistics; 0: the whole row
  bool zero_centered = false;  ///< the weight is stored less 1
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
/// h = x + residual and its norm y: the sum and the norm in one pass.
Added add_rms_norm(const Tensor& x, const Tensor& residual, const std::optional<Tensor>& w = none,
                   const RmsNormOptions& options = {});

}  // namespace norma
