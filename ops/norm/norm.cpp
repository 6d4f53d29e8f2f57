#include "norma/ops/norm/norm.h"

#include "norma/core/dispatch.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/norm/gated_norm.h"
#include "norma/ops/norm/kernels.h"
#include "norma/ops/norm/layer_norm.h"
#include "norma/ops/norm/rms_norm.h"
#include "norma/ops/reduce/reduce.h"

namespace norma {
namespace {

using Maybe = std::optional<Tensor>;

int64_t group_size(const Tensor& x, const NormOptions& o) {
  return o.group == 0 ? x.shape().back() : o.group;
}
Shape stats_shape(const Tensor& x, const NormOptions& o) {
  Shape shape = x.shape();
  shape[shape.dim() - 1] /= group_size(x, o);
  return shape;
}

void require_like_x(std::string_view name, std::string_view what, const Maybe& t, const Tensor& x) {
  if (t && (t->shape() != x.shape() || t->dtype() != x.dtype()))
    throw ShapeError("{}: {} must be like x, {} of {}, but is {} of {}", name, what, x.shape(),
                     to_string(x.dtype()), t->shape(), to_string(t->dtype()));
}
void require_row(std::string_view name, std::string_view what, const Maybe& t, const Tensor& x) {
  if (!t) return;
  if (t->shape() != Shape{x.shape().back()})
    throw ShapeError("{}: {} must be ({},), the last dimension of x {}, but is {}", name, what,
                     x.shape().back(), x.shape(), t->shape());
  if (!is_floating(t->dtype()))
    throw DTypeError("{}: {} must be floating, but is {}", name, what, to_string(t->dtype()));
}

/// t seen as (…, groups, group).
Tensor grouped(const Tensor& t, const NormOptions& o) {
  Shape shape = stats_shape(t, o);
  shape.push_back(group_size(t, o));
  return t.reshape(shape);
}

/// What forward and closed-form gradient share, in the statistics' dtype.
struct Formula {
  Tensor h, gate, u, x_hat, mean, rstd;

  Formula(const Tensor& x, const Maybe& z, const NormOptions& o) {
    const DType dtype = stats_dtype(x.dtype());
    h = x.to(dtype);
    if (z) gate = silu(z->to(dtype));
    u = o.gate == GateOrder::gate_then_norm ? h * gate : h;
    Tensor c = grouped(u, o);
    if (o.kind == NormKind::layer) {
      mean = c.mean(-1, keepdim);
      c = c - mean;
    }
    rstd = rsqrt(c.square().mean(-1, keepdim) + o.eps);
    x_hat = (c * rstd).reshape(x.shape());
  }
};

Tensor weight_of(const Tensor& w, const NormOptions& o, DType dtype) {
  const Tensor gain = w.to(dtype);
  return o.zero_centered ? gain + 1 : gain;
}
Tensor affine(const Tensor& x_hat, const Maybe& w, const Maybe& b, const NormOptions& o) {
  Tensor n = x_hat;
  if (w) n = n * weight_of(*w, o, n.dtype());
  return b ? n + b->to(n.dtype()) : n;
}
Tensor sum_rows(const Tensor& t, DType dtype) {
  return t.reshape({-1, t.shape().back()}).sum(0).to(dtype);
}
/// silu′(z) = σ(z) · (1 + z · (1 − σ(z)))
Tensor silu_slope(const Tensor& z) {
  const Tensor s = sigmoid(z);
  return s * (z * (1 - s) + 1);
}

Maybe even(const Maybe& t) { return t ? Maybe(even_rows(*t)) : none; }
Maybe dense(const Maybe& t) { return t ? Maybe(detail::dense(*t)) : none; }
ConstRows rows(const Maybe& t) { return t ? ConstRows(*t) : ConstRows(); }
ConstVec vec(const Maybe& t) { return t ? ConstVec(*t) : ConstVec(); }

}  // namespace

TensorSpec Norm::check(const Tensor& x, const Maybe& w, const Maybe& b, const Maybe& z,
                       const Maybe& residual, const Options& o) {
  if (!is_floating(x.dtype()))
    throw DTypeError("{}: x must be floating, but is {}; convert it with .to(float32)", name,
                     to_string(x.dtype()));
  if (x.dim() == 0 || x.shape().back() == 0)
    throw ShapeError("{}: x needs a last dimension of 1 or more, but is {}", name, x.shape());
  if (o.group < 0 || (o.group > 0 && x.shape().back() % o.group != 0))
    throw ValueError("{}: group must divide the last dimension of x {}, but is {}", name, x.shape(),
                     o.group);
  if (z.has_value() != (o.gate != GateOrder::no_gate))
    throw ValueError("{}: a gate z needs an order, and an order a gate", name);
  if (!(o.eps >= 0)) throw ValueError("{}: eps must be 0 or more, but is {}", name, o.eps);
  require_row(name, "w", w, x);
  require_row(name, "b", b, x);
  require_like_x(name, "z", z, x);
  require_like_x(name, "residual", residual, x);
  return x.spec();
}

NormResult Norm::define(const Tensor& x, const Maybe& w, const Maybe& b, const Maybe& z,
                        const Maybe& residual, const Options& o) {
  NormResult result;
  if (residual) result.h = x + *residual;
  const Formula f(residual ? *result.h : x, z, o);
  const Tensor n = affine(f.x_hat, w, b, o);
  result.y = (o.gate == GateOrder::norm_then_gate ? n * f.gate : n).to(x.dtype());
  if (f.mean.defined()) result.mean = f.mean.reshape(stats_shape(x, o));
  result.rstd = f.rstd.reshape(stats_shape(x, o));
  return result;
}

NormResult Norm::forward(Context& ctx, const Tensor& x, const Maybe& w, const Maybe& b,
                         const Maybe& z, const Maybe& residual, const Options& o) {
  const Tensor u = even_rows(x);  // x, or a copy where strides are uneven
  const Maybe r = even(residual), gate = even(z), gain = dense(w), bias = dense(b);
  const DType stats = stats_dtype(x.dtype());
  NormResult result;
  result.y = empty(ctx.output());
  if (residual) result.h = empty_like(x);
  if (o.kind == NormKind::layer) result.mean = empty(stats_shape(x, o), stats, x.device());
  result.rstd = empty(stats_shape(x, o), stats, x.device());
  dispatch(x.device(), NormForwardArgs{.options = o,
                                       .x = u,
                                       .residual = rows(r),
                                       .z = rows(gate),
                                       .w = vec(gain),
                                       .b = vec(bias),
                                       .h = result.h ? Rows(*result.h) : Rows(),
                                       .y = result.y,
                                       .mean = result.mean.value,
                                       .rstd = result.rstd.value});
  // The caller holds inputs and h anyway; never the even copies, which have no history.
  if (residual)
    ctx.save(*result.h);
  else
    ctx.save(x);
  ctx.save(w, b, z);
  ctx.save_constant(result.mean.value, result.rstd.value);
  return result;
}

std::vector<Tensor> Norm::backward(Context& ctx, const Maybe& dy, const Maybe& dh, const Maybe&,
                                   const Maybe&) {
  const bool residual = ctx.needs(4);
  if (!dy) return {*dh, {}, {}, {}, residual ? *dh : Tensor()};
  const NormGrads g = apply<NormBackward>(*dy, ctx.saved(0), ctx.saved_optional(1),
                                          ctx.saved_optional(2), ctx.saved_optional(3),
                                          ctx.saved_optional(4), ctx.saved(5), dh, ctx.options());
  return {g.dx, g.dw.value_or(Tensor()), g.db.value_or(Tensor()), g.dz.value_or(Tensor()),
          residual ? g.dx : Tensor()};
}

NormGrads NormBackward::define(const Tensor& dy_, const Tensor& h, const Maybe& w, const Maybe& b,
                               const Maybe& z, const Maybe&, const Tensor&, const Maybe& dh,
                               const Options& o) {
  const Formula f(h, z, o);
  const DType dtype = f.x_hat.dtype();
  const Tensor dy = dy_.to(dtype);
  const bool gate_last = o.gate == GateOrder::norm_then_gate;
  const Tensor dn = gate_last ? dy * f.gate : dy;
  const Tensor g = grouped(w ? dn * weight_of(*w, o, dtype) : dn, o), x_hat = grouped(f.x_hat, o);
  Tensor du = g - x_hat * (g * x_hat).mean(-1, keepdim);
  if (o.kind == NormKind::layer) du = du - g.mean(-1, keepdim);
  du = (f.rstd * du).reshape(h.shape());

  NormGrads grads;
  if (w) grads.dw = sum_rows(dn * f.x_hat, w->dtype());
  if (b) grads.db = sum_rows(dn, b->dtype());
  Tensor dx = du;
  if (gate_last)
    grads.dz = (dy * affine(f.x_hat, w, b, o) * silu_slope(z->to(dtype))).to(z->dtype());
  if (o.gate == GateOrder::gate_then_norm) {
    dx = du * f.gate;
    grads.dz = (du * f.h * silu_slope(z->to(dtype))).to(z->dtype());
  }
  if (dh) dx = dx + dh->to(dtype);
  grads.dx = dx.to(h.dtype());
  return grads;
}

NormGrads NormBackward::forward(Context&, const Tensor& dy, const Tensor& h, const Maybe& w,
                                const Maybe& b, const Maybe& z, const Maybe& mean,
                                const Tensor& rstd, const Maybe& dh, const Options& o) {
  const Tensor d = even_rows(dy), u = even_rows(h);
  const Maybe gate = even(z), more = even(dh), gain = dense(w), bias = dense(b);
  NormGrads grads;
  grads.dx = empty_like(h);
  if (w) grads.dw = empty_like(*w);
  if (b) grads.db = empty_like(*b);
  if (z) grads.dz = empty_like(*z);
  dispatch(h.device(), NormBackwardArgs{.options = o,
                                        .dy = d,
                                        .h = u,
                                        .z = rows(gate),
                                        .w = vec(gain),
                                        .b = vec(bias),
                                        .mean = vec(mean),
                                        .rstd = rstd,
                                        .dh = rows(more),
                                        .dx = grads.dx,
                                        .dz = z ? Rows(*grads.dz) : Rows(),
                                        .dw = w ? Vec(*grads.dw) : Vec(),
                                        .db = b ? Vec(*grads.db) : Vec()});
  return grads;
}

Tensor rms_norm(const Tensor& x, const Maybe& w, const RmsNormOptions& o) {
  return apply<Norm>(x, w, none, none, none,
                     {.kind = NormKind::rms,
                      .eps = o.eps,
                      .group = o.group,
                      .zero_centered = o.zero_centered})
      .y;
}
Added add_rms_norm(const Tensor& x, const Tensor& residual, const Maybe& w,
                   const RmsNormOptions& o) {
  NormResult r = apply<Norm>(
      x, w, none, none, residual,
      {.kind = NormKind::rms, .eps = o.eps, .group = o.group, .zero_centered = o.zero_centered});
  return {r.y, *r.h};
}
Tensor layer_norm(const Tensor& x, const Maybe& w, const Maybe& b, const LayerNormOptions& o) {
  return apply<Norm>(x, w, b, none, none,
                     {.kind = NormKind::layer,
                      .eps = o.eps,
                      .group = o.group,
                      .zero_centered = o.zero_centered,
                      .variance = o.variance})
      .y;
}
Added add_layer_norm(const Tensor& x, const Tensor& residual, const Maybe& w, const Maybe& b,
                     const LayerNormOptions& o) {
  NormResult r = apply<Norm>(x, w, b, none, residual,
                             {.kind = NormKind::layer,
                              .eps = o.eps,
                              .group = o.group,
                              .zero_centered = o.zero_centered,
                              .variance = o.variance});
  return {r.y, *r.h};
}
Tensor gated_norm(const Tensor& x, const Tensor& z, const Maybe& w, const Maybe& b,
                  const GatedNormOptions& o) {
  return apply<Norm>(x, w, b, z, none,
                     {.kind = o.kind,
                      .gate = o.order,
                      .eps = o.eps,
                      .group = o.group,
                      .zero_centered = o.zero_centered})
      .y;
}

}  // namespace norma
