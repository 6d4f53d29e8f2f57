#pragma once

#include "norma/ops/norm/norm.h"

namespace norma::detail {

// The family's mathematics in tensor arithmetic: what definitions and closed-form derivatives
// share.

using Maybe = std::optional<Tensor>;

int64_t group_size(const Tensor& x, const NormOptions& o);
Shape stats_shape(const Tensor& x, const NormOptions& o);  ///< (…, groups)
Shape row_shape(const Tensor& x);                          ///< (…)

/// t seen as (…, groups, group).
Tensor grouped(const Tensor& t, const NormOptions& o);
/// What statistics are: means over the group, sums for l2.
Tensor over_group(const Tensor& t, const NormOptions& o);

Tensor activation(const Tensor& z, const NormOptions& o);
/// s′(z); of swish σ(βz) · (1 + βz · (1 − σ(βz))), silu's with β = 1.
Tensor activation_slope(const Tensor& z, const NormOptions& o);

/// x as it is added to the residual, or the gradient on its way back: both are the same product.
Tensor dropped_and_scaled(const Tensor& x, const Maybe& row_scale, const NormOptions& o);

/// x̂ and what makes it, in the dtype of h and z; z is undefined where there is no gate. rstd and
/// the means are (…, groups, 1).
struct Formula {
  Tensor gate, x_hat, mean, mean_rest, rstd;
  Formula(const Tensor& h, const Tensor& z, const NormOptions& o);
};
/// J g, J = ∂x̂/∂u = rstd · (I − x̂x̂ᵀ/D), less rstd · 11ᵀ/D for layer; symmetric.
Tensor through_norm(const Tensor& g, const Tensor& x_hat, const Tensor& rstd, const NormOptions& o);

/// w, or a group's w repeated, for rows of `cols` elements.
Tensor whole_row(const Tensor& w, DType dtype, int64_t cols);
/// As it multiplies: 1 + w where it is zero-centred.
Tensor weight_of(const Tensor& w, const NormOptions& o, DType dtype, int64_t cols);
Tensor affine(const Tensor& x_hat, const Maybe& w, const Maybe& b, const NormOptions& o);
/// Casting::rounded: by way of x's dtype.
Tensor as_multiplied(const Tensor& x_hat, DType dtype, const NormOptions& o);
/// Over all rows, and over the groups where they share a weight of n elements.
Tensor sum_rows(const Tensor& t, int64_t n, DType dtype);

}  // namespace norma::detail
