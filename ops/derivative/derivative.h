#pragma once

#include "norma/core/tensor.h"

namespace norma {

using UnaryTensorFunction = std::function<Tensor(const Tensor&)>;

// Derivatives of y = f(x) at x, J = ∂y/∂x. Each can be differentiated again where x has a history.

/// vᵀJ, like x; v like y: one sweep.
Tensor vjp(const UnaryTensorFunction& f, const Tensor& x, const Tensor& v);
/// J v, like y; v like x: the derivative of vjp, which is linear in its v, so two sweeps.
Tensor jvp(const UnaryTensorFunction& f, const Tensor& x, const Tensor& v);
/// J of shape y.shape + x.shape: one sweep an element of y.
Tensor jacobian(const UnaryTensorFunction& f, const Tensor& x);
/// H v with H = ∂²y/∂x² of a one-element y; v like x.
Tensor hvp(const UnaryTensorFunction& f, const Tensor& x, const Tensor& v);

}  // namespace norma
