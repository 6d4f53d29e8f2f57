#include "norma/ops/conv1d/conv1d.h"

#include <array>

#include "norma/core/cuda/side_stream.h"
#include "norma/core/dispatch.h"
#include "norma/core/gradient_memory.h"
#include "norma/ops/conv1d/kernels.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/reduce/reduce.h"
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

/// t, or a dense copy where its last dimension is not.
Tensor ready(const Tensor& t) { return t.strides()[2] == 1 ? t : detail::dense(t); }
Tensor dense_stats(const Tensor& t, DType x) { return detail::dense(t.to(stats_dtype(x))); }
Maybe dense_stats(const Maybe& t, DType x) { return t ? Maybe(dense_stats(*t, x)) : none; }
Maybe dense(const Maybe& t) { return t ? Maybe(detail::dense(*t)) : none; }
Tensor or_absent(const Maybe& t) { return t.value_or(Tensor()); }

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

Conv1dResult CausalConv1d::forward(Context& ctx, const Tensor& x, const Tensor& w, const Maybe& b,
                                   const Maybe& state, const Options& o) {
  const Tensor u = ready(x), weight = dense_stats(w, x.dtype());
  const Maybe bias = dense_stats(b, x.dtype()), past = dense(state);
  Conv1dResult result;
  result.y = empty(x.spec());
  if (o.final_state)
    result.state = empty({x.size(0), w.size(1) - 1, x.size(2)}, x.dtype(), x.device());
  dispatch(x.device(), Conv1dForwardArgs{.silu = o.activation == Conv1dActivation::silu,
                                         .x = u,
                                         .state = or_absent(past),
                                         .w = weight,
                                         .b = or_absent(bias),
                                         .y = result.y,
                                         .last_state = or_absent(result.state)});
  ctx.save(x, w, b, state);
  return result;
}
CausalConv1d::Grads CausalConv1d::backward(Context& ctx, const Maybe& dy,
                                           const Maybe& dlast_state) {
  const Tensor x = ctx.saved(0);
  return apply<CausalConv1dBackward>(dy ? *dy : zeros_like(x), dlast_state, x, ctx.saved(1),
                                     ctx.saved_optional(2), ctx.saved_optional(3), ctx.options());
}

CausalConv1d::Grads CausalConv1dBackward::define(const Tensor& dy, const Maybe& dlast_state,
                                                 const Tensor& x, const Tensor& w_, const Maybe& b,
                                                 const Maybe& state, const Options& o) {
  const DType dtype = stats_dtype(x.dtype());
  const int64_t length = x.size(1), width = w_.size(1), past = width - 1;
  const Tensor u = with_past(x, state, past, dtype), w = w_.to(dtype);
  Tensor dp = dy.to(dtype);
  if (o.activation == Conv1dActivation::silu) {
    const Tensor p = convolved(u, w, b, length), s = sigmoid(p);
    dp = dp * (s * (p * (1 - s) + 1));
  }
  const auto rows = [&](int64_t n) { return zeros({x.size(0), n, x.size(2)}, dtype, x.device()); };
  Tensor du = dlast_state ? concat({rows(length), dlast_state->to(dtype)}, 1) : rows(length + past);
  std::vector<Tensor> taps;
  for (int64_t k = 0; k < width; ++k) {
    du = du + concat({rows(k), dp * w.select(1, k), rows(past - k)}, 1);
    taps.push_back(sum(dp * u.slice(1, k, k + length), {0, 1}));
  }
  Grads grads;
  grads.dx = du.slice(1, past, past + length).to(x.dtype());
  grads.dw = stack(taps, 1).to(w_.dtype());
  if (b) grads.db = sum(dp, {0, 1}).to(b->dtype());
  if (state) grads.dstate = du.slice(1, 0, past).to(x.dtype());
  return grads;
}
CausalConv1d::Grads CausalConv1dBackward::forward(Context&, const Tensor& dy,
                                                  const Maybe& dlast_state, const Tensor& x,
                                                  const Tensor& w, const Maybe& b,
                                                  const Maybe& state, const Options& o) {
  const DType stats = stats_dtype(x.dtype());
  const Tensor d = ready(dy), u = ready(x), weight = dense_stats(w, x.dtype());
  const Maybe bias = dense_stats(b, x.dtype()), past = dense(state), dlast = dense(dlast_state);
  Grads grads;
  grads.dx = detail::empty_gradient(x);
  const Tensor dw = empty(w.shape(), stats, w.device());
  if (b) grads.db = empty(b->shape(), stats, b->device());
  if (state) grads.dstate = empty(state->spec());
  const Conv1dBackwardArgs k{.silu = o.activation == Conv1dActivation::silu,
                             .dy = d,
                             .dlast_state = or_absent(dlast),
                             .x = u,
                             .state = or_absent(past),
                             .w = weight,
                             .b = or_absent(bias),
                             .dx = grads.dx,
                             .dstate = or_absent(grads.dstate),
                             .dw = dw,
                             .db = or_absent(grads.db)};
  if (x.device().is_cpu()) {
    dispatch(x.device(), k);
  } else if constexpr (kBuiltWithCuda) {
    detail::run_with_aside(x.device(), std::array{dw, or_absent(grads.db)},
                           [&] { dispatch(x.device(), k); });
  }
  grads.dw = dw.to(w.dtype());
  if (b) grads.db = grads.db->to(b->dtype());
  return grads;
}

Conv1dResult causal_conv1d(const Tensor& x, const Tensor& w, const Conv1dInputs& more,
                           const Conv1dOptions& options) {
  return apply<CausalConv1d>(x, w, more.b, more.state, options);
}

}  // namespace norma
