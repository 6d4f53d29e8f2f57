#include "norma/ops/conv1d/conv1d.h"

#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/view/view.h"

namespace norma {
namespace {

using Maybe = std::optional<Tensor>;

/// x behind the K − 1 inputs before it, in `dtype`.
Tensor with_past(const Tensor& x, const Maybe& state, int64_t past, DType dtype) {
  const Tensor before =
      state ? state->to(dtype) : zeros({x.size(0), past, x.size(2)}, dtype, x.device());
  return concat({before, x.to(dtype)}, 1);
}
/// b + Σ_k w_k ⊙ u_{t+k}
Tensor convolved(const Tensor& u, const Tensor& w, const Maybe& b, int64_t length) {
  Tensor p;
  for (int64_t k = 0; k < w.size(1); ++k) {
    const Tensor term = u.slice(1, k, k + length) * w.select(1, k);
    p = p.defined() ? p + term : term;
  }
  return b ? p + b->to(u.dtype()) : p;
}

}  // namespace

void CausalConv1d::check(const Tensor& x, const Tensor& w, const Maybe& b, const Maybe& state,
                         const Options&) {
  if (!is_floating(x.dtype()) || !is_floating(w.dtype()) || (b && !is_floating(b->dtype())))
    throw DTypeError("{}: x, w and b must be floating, but x is {} and w {}", name,
                     to_string(x.dtype()), to_string(w.dtype()));
  if (x.dim() != 3) throw ShapeError("{}: x must be (B, T, C), but is {}", name, x.shape());
  const int64_t channels = x.size(2);
  if (w.dim() != 2 || w.size(0) != channels || w.size(1) < 1)
    throw ShapeError("{}: w must be (C, K) with the {} channels of x {}, but is {}", name, channels,
                     x.shape(), w.shape());
  if (b && b->shape() != Shape{channels})
    throw ShapeError("{}: b must be ({},), the channels of x {}, but is {}", name, channels,
                     x.shape(), b->shape());
  const Shape past{x.size(0), w.size(1) - 1, channels};
  if (state && state->shape() != past)
    throw ShapeError("{}: state must be (B, K − 1, C) = {}, but is {}", name, past, state->shape());
  if (state && state->dtype() != x.dtype())
    throw DTypeError("{}: state must have x's dtype {}, but is {}", name, to_string(x.dtype()),
                     to_string(state->dtype()));
}

Conv1dResult CausalConv1d::define(const Tensor& x, const Tensor& w, const Maybe& b,
                                  const Maybe& state, const Options& o) {
  const DType dtype = stats_dtype(x.dtype());
  const Tensor u = with_past(x, state, w.size(1) - 1, dtype);
  const Tensor p = convolved(u, w.to(dtype), b, x.size(1));
  Conv1dResult result;
  result.y = (o.activation == Conv1dActivation::silu ? silu(p) : p).to(x.dtype());
  if (o.final_state) result.state = u.slice(1, x.size(1), u.size(1)).to(x.dtype());
  return result;
}

Conv1dResult causal_conv1d(const Tensor& x, const Tensor& w, const Conv1dInputs& more,
                           const Conv1dOptions& options) {
  return apply<CausalConv1d>(x, w, more.b, more.state, options);
}

}  // namespace norma
