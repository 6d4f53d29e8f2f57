#include "norma/ops/norm/dyt.h"

#include <numbers>

#include "norma/core/dispatch.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/norm/arguments.h"
#include "norma/ops/norm/dyt_kernels.h"
#include "norma/ops/norm/formula.h"
#include "norma/ops/reduce/reduce.h"

namespace norma {

using detail::Maybe;

namespace {

void require_one(std::string_view name, std::string_view what, const Maybe& t) {
  if (t && (t->numel() != 1 || !is_floating(t->dtype())))
    throw ShapeError("{}: {} must be one floating element, but is {} of {}", name, what, t->shape(),
                     to_string(t->dtype()));
}
void require_row(std::string_view name, std::string_view what, const Maybe& t, const Tensor& x) {
  if (t && (t->shape() != Shape{x.shape().back()} || !is_floating(t->dtype())))
    throw ShapeError("{}: {} must be floating and ({},), the last dimension of x {}, but is {}",
                     name, what, x.shape().back(), x.shape(), t->shape());
}

/// α x + s
Tensor argument(const Tensor& x, const Tensor& alpha, const Maybe& shift) {
  const Tensor v = x * alpha.reshape({1}).to(x.dtype());
  return shift ? v + shift->reshape({1}).to(x.dtype()) : v;
}

}  // namespace

TensorSpec Squash::check(const Tensor& x, const Tensor& alpha, const Maybe& shift, const Maybe& w,
                         const Maybe& b, const Options&) {
  if (!is_floating(x.dtype()))
    throw DTypeError("{}: x must be floating, but is {}", name, to_string(x.dtype()));
  if (x.dim() == 0 || x.shape().back() == 0)
    throw ShapeError("{}: x needs a last dimension of 1 or more, but is {}", name, x.shape());
  require_one(name, "alpha", alpha), require_one(name, "shift", shift);
  require_row(name, "w", w, x), require_row(name, "b", b, x);
  return x.spec();
}

Tensor Squash::define(const Tensor& x, const Tensor& alpha, const Maybe& shift, const Maybe& w,
                      const Maybe& b, const Options& o) {
  const DType dtype = stats_dtype(x.dtype());
  const Tensor v = argument(x.to(dtype), alpha, shift);
  Tensor y = o.function == SquashFunction::tanh ? tanh(v) : erf(v);
  if (w) y = y * w->to(dtype);
  if (b) y = y + b->to(dtype);
  return y.to(x.dtype());
}

Tensor Squash::forward(Context& ctx, const Tensor& x, const Tensor& alpha, const Maybe& shift,
                       const Maybe& w, const Maybe& b, const Options& o) {
  const Tensor u = even_rows(x);
  const detail::Read gain = detail::dense(w), bias = detail::dense(b);
  Tensor y = empty(ctx.output());
  dispatch(x.device(), SquashForwardArgs{.function = o.function,
                                         .x = u,
                                         .alpha = alpha,
                                         .shift = detail::vec(shift),
                                         .w = detail::vec(gain),
                                         .b = detail::vec(bias),
                                         .y = y});
  ctx.save(x, alpha, shift, w);
  return y;
}

std::vector<Tensor> Squash::backward(Context& ctx, const Tensor& dy) {
  enum { kX, kAlpha, kShift, kW, kB };
  const auto wanted = [&](int i) {
    return ctx.needs(i) ? std::optional(ctx.input(i).dtype) : std::nullopt;
  };
  const Options& o = ctx.options();
  const SquashGrads g = apply<SquashBackward>(dy, ctx.saved(0), ctx.saved(1), ctx.saved_optional(2),
                                              ctx.saved_optional(3),
                                              {.squash = o,
                                               .dx = wanted(kX),
                                               .dalpha = wanted(kAlpha),
                                               .dshift = wanted(kShift),
                                               .dw = wanted(kW),
                                               .db = wanted(kB)});
  const auto given = [](const Maybe& t) { return t.value_or(Tensor()); };
  return {given(g.dx), given(g.dalpha), given(g.dshift), given(g.dw), given(g.db)};
}

SquashGrads SquashBackward::define(const Tensor& dy_, const Tensor& x_, const Tensor& alpha,
                                   const Maybe& shift, const Maybe& w, const Options& wants) {
  const DType dtype = stats_dtype(x_.dtype());
  const int64_t cols = x_.shape().back();
  const Tensor dy = dy_.to(dtype), x = x_.to(dtype), v = argument(x, alpha, shift);
  const bool is_tanh = wants.squash.function == SquashFunction::tanh;
  const Tensor t = is_tanh ? tanh(v) : erf(v);
  const Tensor slope = is_tanh ? 1 - t.square() : exp(-v.square()) * (2 * std::numbers::inv_sqrtpi);
  const Tensor e = (w ? dy * w->to(dtype) : dy) * slope;
  SquashGrads grads;
  if (wants.dx) grads.dx = (e * alpha.reshape({1}).to(dtype)).to(*wants.dx);
  if (wants.dalpha) grads.dalpha = (e * x).sum().reshape(alpha.shape()).to(*wants.dalpha);
  if (wants.dshift) grads.dshift = e.sum().reshape(shift->shape()).to(*wants.dshift);
  if (wants.dw) grads.dw = detail::sum_rows(dy * t, cols, *wants.dw);
  if (wants.db) grads.db = detail::sum_rows(dy, cols, *wants.db);
  return grads;
}

SquashGrads SquashBackward::forward(Context&, const Tensor& dy, const Tensor& x,
                                    const Tensor& alpha, const Maybe& shift, const Maybe& w,
                                    const Options& wants) {
  const Tensor d = even_rows(dy.to(x.dtype())), u = even_rows(x);
  const detail::Read gain = detail::dense(w);
  const Shape row{x.shape().back()};
  SquashGrads grads{
      .dx = detail::made(x.shape(), wants.dx, x.device()),
      .dalpha = detail::made(alpha.shape(), wants.dalpha, x.device()),
      .dshift = detail::made(shift ? shift->shape() : Shape{}, wants.dshift, x.device()),
      .dw = detail::made(row, wants.dw, x.device()),
      .db = detail::made(row, wants.db, x.device())};
  dispatch(x.device(), SquashBackwardArgs{.function = wants.squash.function,
                                          .dy = d,
                                          .x = u,
                                          .alpha = alpha,
                                          .shift = detail::vec(shift),
                                          .w = detail::vec(gain),
                                          .dx = detail::out_rows(grads.dx),
                                          .dalpha = detail::out_vec(grads.dalpha),
                                          .dshift = detail::out_vec(grads.dshift),
                                          .dw = detail::out_vec(grads.dw),
                                          .db = detail::out_vec(grads.db)});
  return grads;
}

Tensor dyt(const Tensor& x, const Tensor& alpha, const Maybe& w, const Maybe& b) {
  return apply<Squash>(x, alpha, none, w, b, {.function = SquashFunction::tanh});
}
Tensor derf(const Tensor& x, const Tensor& alpha, const Tensor& shift, const Maybe& w,
            const Maybe& b) {
  return apply<Squash>(x, alpha, shift, w, b, {.function = SquashFunction::erf});
}

}  // namespace norma
