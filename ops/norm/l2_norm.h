#pragma once

#include "norma/ops/norm/norm.h"

namespace norma {

struct L2NormOptions {
  double eps = 1e-6;  ///< inside the root
  int64_t group = 0;  ///< elements that share a length; 0: the whole row
};

/// Rows of length 1, or w: y = w ⊙ x̂,  x̂ = x / √(Σ x² + eps)
///   dx = rstd · (g − x̂ · Σ g ⊙ x̂) with g = w ⊙ dy
/// See Norm for shapes, dtypes and errors.
Tensor l2_norm(const Tensor& x, const std::optional<Tensor>& w = none,
               const L2NormOptions& options = {});

}  // namespace norma
