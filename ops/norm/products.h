#pragma once

#include "norma/ops/norm/norm.h"

namespace norma {

// The Jacobian of a norm as a linear map, in closed form: forward mode and reverse mode at one
// point, without a graph. With w = 1 and no gate it is symmetric, J = rstd · (I − x̂x̂ᵀ/D), less
// rstd · 11ᵀ/D for layer: a projection away from x (and from 1), divided by the row's size.

/// ẏ = w ⊙ J u̇ + ẇ ⊙ x̂ + ḃ for tangents ẋ of x and those of the other inputs that are not 0; u̇ of
/// a gate that comes first is ḣ ⊙ s(z) + h ⊙ s′(z) ⊙ ż, and a gate that comes last adds
/// n ⊙ s′(z) ⊙ ż. The tangents of y, y2 and h, differentiable again. Tangents are like their
/// inputs.
struct NormTangents {
  Tensor y;
  std::optional<Tensor> y2, h;
};
NormTangents norm_jvp(const Tensor& x, const Tensor& x_dot, const NormInputs& inputs = {},
                      const NormInputs& tangents = {}, const NormOptions& options = {});

/// vᵀ ∂y/∂(each input) for v like y: what backward computes, by the same kernel, of the inputs that
/// are there.
NormGrads norm_vjp(const Tensor& x, const Tensor& v, const NormInputs& inputs = {},
                   const NormOptions& options = {});

namespace detail {
/// The same from a forward's result; h is made from saves = input.
NormGrads gradients_of_y(const Tensor& x, const NormResult& result, const Tensor& dy,
                         const NormInputs& inputs, const NormOptions& options);
}  // namespace detail

}  // namespace norma
