#include "norma/ops/norm/norm.h"

#include <array>
#include <memory>

#include "norma/core/cuda/side_stream.h"
#include "norma/core/dispatch.h"
#include "norma/core/gradient_memory.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/unary.h"
#include "norma/ops/norm/arguments.h"
#include "norma/ops/norm/formula.h"
#include "norma/ops/norm/second_derivative.h"
#include "norma/ops/norm/small_row.h"
#include "norma/ops/reduce/reduce.h"

namespace norma {

using namespace detail;

namespace {

enum Input { kX, kW, kB, kZ, kResidual, kRowScale, kW2, kB2 };

void require_like_x(std::string_view name, std::string_view what, const Maybe& t, const Tensor& x,
                    DType dtype) {
  if (t && (t->shape() != x.shape() || (t->dtype() != x.dtype() && t->dtype() != dtype)))
    throw ShapeError("{}: {} must be like x, {} of {}, but is {} of {}", name, what, x.shape(),
                     to_string(x.dtype()), t->shape(), to_string(t->dtype()));
}
/// A weight or bias: as long as the others, a row or one group of it.
void require_weight(std::string_view name, std::string_view what, const Maybe& t, const Tensor& x,
                    const NormOptions& o, const Maybe& other) {
  if (!t) return;
  if (!is_floating(t->dtype()))
    throw DTypeError("{}: {} must be floating, but is {}", name, what, to_string(t->dtype()));
  const int64_t cols = x.shape().back(), group = group_size(x, o);
  if (t->shape() != Shape{cols} && t->shape() != Shape{group}) {
    if (group == cols)
      throw ShapeError("{}: {} must be ({},), the last dimension of x {}, but is {}", name, what,
                       cols, x.shape(), t->shape());
    throw ShapeError(
        "{}: {} must be ({},), the last dimension of x {}, or ({},), a group of it, "
        "but is {}",
        name, what, cols, x.shape(), group, t->shape());
  }
  if (other && t->shape() != other->shape())
    throw ShapeError("{}: weights and biases must be of one length, but {} is {} beside {}", name,
                     what, t->shape(), other->shape());
}
void require_options(std::string_view name, const Tensor& x, const NormOptions& o) {
  if (o.group < 0 || (o.group > 0 && x.shape().back() % o.group != 0))
    throw ValueError("{}: group must divide the last dimension of x {}, but is {}", name, x.shape(),
                     o.group);
  if (!(o.eps >= 0)) throw ValueError("{}: eps must be 0 or more, but is {}", name, o.eps);
  if (!(o.dropout >= 0 && o.dropout < 1))
    throw ValueError("{}: dropout must be from 0 to below 1, but is {}", name, o.dropout);
  if (o.out_dtype && !is_floating(*o.out_dtype))
    throw DTypeError("{}: out_dtype must be floating, but is {}", name, to_string(*o.out_dtype));
  if (o.h_dtype && *o.h_dtype != x.dtype() && *o.h_dtype != stats_dtype(x.dtype()))
    throw DTypeError("{}: h_dtype must be x's, {}, or its statistics', {}, but is {}", name,
                     to_string(x.dtype()), to_string(stats_dtype(x.dtype())),
                     to_string(*o.h_dtype));
  if (o.saves == NormSaves::x_hat && o.gate == GateOrder::gate_then_norm)
    throw ValueError("{}: saves must be input where the gate comes first, whose gradient needs h",
                     name);
}

DType h_dtype(const Tensor& x, const Maybe& residual, const NormOptions& o) {
  return o.h_dtype.value_or(residual ? residual->dtype() : x.dtype());
}
/// Whether h is a tensor of its own.
bool makes_h(const Tensor& x, const Maybe& residual, const Maybe& row_scale, const NormOptions& o) {
  return residual || row_scale || o.dropout > 0 || h_dtype(x, residual, o) != x.dtype();
}

/// The gradients where h is the only result that was used.
NormGrads gradients_of_h(const Tensor& dh, const Maybe& x, const Maybe& row_scale,
                         const NormBackwardOptions& wants) {
  const NormOptions& o = wants.norm;
  NormGrads grads;
  if (wants.dresidual) grads.dresidual = dh.to(*wants.dresidual);
  if (!row_scale && o.dropout == 0) {
    if (wants.dx) grads.dx = dh.to(*wants.dx);
    return grads;
  }
  const Tensor d = dh.to(stats_dtype(dh.dtype()));
  if (wants.dx) grads.dx = dropped_and_scaled(d, row_scale, o).to(*wants.dx);
  if (wants.drow_scale)
    grads.drow_scale =
        (d * dropped_and_scaled(x->to(d.dtype()), none, o)).sum(-1).to(*wants.drow_scale);
  return grads;
}

/// Puts the norm into the launch of the product that gives its rows, where that has waited and is
/// for it; else the product is started.
bool ends(const std::unique_ptr<WaitingLaunch>& product, const NormForwardArgs& k) {
  if (!product) return false;
  auto* rows = dynamic_cast<norm_cuda::RowsProduct*>(product.get());
  if (rows && rows->start_with(k)) return true;
  product->start();
  return false;
}

/// Empty tensors for the probe of one backward.
void make_probe(NormProbe& probe, const Maybe& mean, const Tensor& rstd) {
  probe = {.mean = mean.value_or(Tensor()),
           .rstd = rstd,
           .mean_gx = empty_like(rstd),
           .g_norm = empty_like(rstd),
           .du_norm = empty_like(rstd)};
}

}  // namespace

TensorSpec Norm::check(const Tensor& x, const Maybe& w, const Maybe& b, const Maybe& z,
                       const Maybe& residual, const Maybe& row_scale, const Maybe& w2,
                       const Maybe& b2, const Options& o) {
  if (!is_floating(x.dtype()))
    throw DTypeError("{}: x must be floating, but is {}; convert it with .to(float32)", name,
                     to_string(x.dtype()));
  if (x.dim() == 0 || x.shape().back() == 0)
    throw ShapeError("{}: x needs a last dimension of 1 or more, but is {}", name, x.shape());
  require_options(name, x, o);
  if (z.has_value() != (o.gate != GateOrder::no_gate))
    throw ValueError("{}: a gate z needs an order, and an order a gate", name);
  if (w2 && o.gate == GateOrder::norm_then_gate)
    throw ValueError("{}: a second weight needs its gate first, or none", name);
  if (b2 && !w2) throw ValueError("{}: b2 needs w2, the weight of the second result", name);
  require_weight(name, "w", w, x, o, none);
  require_weight(name, "b", b, x, o, w);
  require_weight(name, "w2", w2, x, o, w ? w : b);
  require_weight(name, "b2", b2, x, o, w2);
  require_like_x(name, "z", z, x, x.dtype());
  require_like_x(name, "residual", residual, x, stats_dtype(x.dtype()));
  if (row_scale && (row_scale->shape() != row_shape(x) || !is_floating(row_scale->dtype())))
    throw ShapeError("{}: row_scale must be floating, one a row of x {}, but is {} of {}", name,
                     x.shape(), row_scale->shape(), to_string(row_scale->dtype()));
  return {x.shape(), o.out_dtype.value_or(x.dtype()), x.device()};
}

NormResult Norm::define(const Tensor& x, const Maybe& w, const Maybe& b, const Maybe& z,
                        const Maybe& residual, const Maybe& row_scale, const Maybe& w2,
                        const Maybe& b2, const Options& o) {
  const DType dtype = stats_dtype(x.dtype()), out = o.out_dtype.value_or(x.dtype());
  NormResult result;
  if (makes_h(x, residual, row_scale, o)) {
    Tensor s = dropped_and_scaled(x.to(dtype), row_scale, o);
    if (residual) s = s + residual->to(dtype);
    result.h = s.to(h_dtype(x, residual, o));
  } else if (o.passes_x) {
    result.h = x;
  }
  const Formula f(result.h.value_or(x).to(dtype), z ? z->to(dtype) : Tensor(), o);
  const Tensor x_hat = as_multiplied(f.x_hat, x.dtype(), o), n = affine(x_hat, w, b, o);
  result.y = (o.gate == GateOrder::norm_then_gate ? n * f.gate : n).to(out);
  if (w2) result.y2 = affine(x_hat, w2, b2, o).to(out);
  const Shape shape = stats_shape(x, o);
  if (o.kind == NormKind::layer) {
    result.mean = f.mean.reshape(shape);
    result.mean_rest = f.mean_rest.reshape(shape);
  }
  result.rstd = f.rstd.reshape(shape);
  return result;
}

NormResult Norm::forward(Context& ctx, const Tensor& x, const Maybe& w, const Maybe& b,
                         const Maybe& z, const Maybe& residual, const Maybe& row_scale,
                         const Maybe& w2, const Maybe& b2, const Options& o) {
  const auto product = take_waiting(x);
  const Read u = even(x), r = even(residual), gate = even(z), scale = dense(row_scale);
  const Read gain = dense(w), bias = dense(b), gain2 = dense(w2), bias2 = dense(b2);
  const TensorSpec stats{stats_shape(x, o), stats_dtype(x.dtype()), x.device()};
  NormResult result;
  result.y = empty(ctx.output());
  if (w2) result.y2 = empty(ctx.output());
  if (makes_h(x, residual, row_scale, o))
    result.h = empty(x.shape(), h_dtype(x, residual, o), x.device());
  if (o.kind == NormKind::layer) result.mean = empty(stats), result.mean_rest = empty(stats);
  result.rstd = empty(stats);
  const bool keeps_x_hat = o.saves == NormSaves::x_hat && ctx.recording();
  const Maybe x_hat = keeps_x_hat ? Maybe(empty(x.spec())) : none;
  const NormForwardArgs k{.options = o,
                          .x = rows(u),
                          .z = rows(gate),
                          .residual = rows(r),
                          .row_scale = vec(scale),
                          .w = vec(gain),
                          .b = vec(bias),
                          .w2 = vec(gain2),
                          .b2 = vec(bias2),
                          .h = out_rows(result.h),
                          .y = result.y,
                          .y2 = out_rows(result.y2),
                          .x_hat = out_rows(x_hat),
                          .mean = result.mean.value,
                          .mean_rest = result.mean_rest.value,
                          .rstd = result.rstd.value};
  if (!ends(product, k)) dispatch(x.device(), k);
  // The caller holds inputs and h anyway; never the even copies, which have no history.
  if (keeps_x_hat || result.h)
    ctx.save(keeps_x_hat ? Maybe() : result.h);
  else
    ctx.save(x);
  if (o.passes_x && !result.h) result.h = detail::raw_view(x, x.shape(), x.strides(), x.offset());
  ctx.save(ctx.needs(kRowScale) ? Maybe(x) : Maybe());
  ctx.save(z, row_scale, w, b, w2);
  ctx.save_constant(x_hat, result.mean.value, result.mean_rest.value, result.rstd.value);
  if (o.casting == Casting::rounded) ctx.save_constant(empty({0}, x.dtype()));  // says which
  return result;
}

std::vector<Tensor> Norm::backward(Context& ctx, const Maybe& dy, const Maybe& dy2, const Maybe& dh,
                                   const Maybe&, const Maybe&, const Maybe&) {
  const NormOptions& o = ctx.options();
  const Maybe h = ctx.saved_optional(0), x = ctx.saved_optional(1), z = ctx.saved_optional(2),
              row_scale = ctx.saved_optional(3), w = ctx.saved_optional(4),
              b = ctx.saved_optional(5), w2 = ctx.saved_optional(6), x_hat = ctx.saved_optional(7),
              mean = ctx.saved_optional(8), mean_rest = ctx.saved_optional(9);
  const Tensor rstd = ctx.saved(10);
  if (x_hat && ctx.recording())
    throw GraphError(
        "{}: a second derivative needs h, which saves = x_hat does not keep; use "
        "saves = input",
        name);
  const auto wanted = [&](Input i) {
    return ctx.needs(i) ? std::optional(ctx.input(i).dtype) : std::nullopt;
  };
  NormBackwardOptions wants{
      .norm = o,
      .x_dtype = o.casting == Casting::rounded ? ctx.saved(11).dtype() : rstd.dtype(),
      .dx = wanted(kX),
      .dresidual = wanted(kResidual),
      .dw = wanted(kW),
      .db = wanted(kB),
      .dz = wanted(kZ),
      .drow_scale = wanted(kRowScale),
      .dw2 = wanted(kW2),
      .db2 = wanted(kB2),
      .saved = true};
  NormGrads g;
  const bool same = !row_scale && o.dropout == 0 && wants.dx == wants.dresidual;
  if (same) wants.dresidual = none;
  if (dy && dy2) {
    g = apply<NormBackward>(*dy, dy2, dh, h, x_hat, x, z, row_scale, w, b, w2, mean, mean_rest,
                            rstd, wants);
  } else if (dy && has_fused_second_derivative(o, row_scale)) {
    wants.dw2 = wants.db2 = none;
    g = apply<PlainNormBackward>(*dy, dh, *h, w, b, mean, mean_rest, rstd, wants);
  } else if (dy) {
    wants.dw2 = wants.db2 = none;
    g = apply<NormBackward>(*dy, none, dh, h, x_hat, x, z, row_scale, w, b, none, mean, mean_rest,
                            rstd, wants);
  } else if (dy2) {  // the second result is the only one
    wants.dw = wants.dw2, wants.db = wants.db2;
    wants.dw2 = wants.db2 = none;
    g = apply<NormBackward>(*dy2, none, dh, h, x_hat, x, z, row_scale, w2, none, none, mean,
                            mean_rest, rstd, wants);
    std::swap(g.dw, g.dw2), std::swap(g.db, g.db2);
  } else {
    g = gradients_of_h(*dh, x, row_scale, wants);
  }
  const auto given = [](const Maybe& t) { return t.value_or(Tensor()); };
  return {
      given(g.dx),         given(g.dw),  given(g.db), given(g.dz), given(same ? g.dx : g.dresidual),
      given(g.drow_scale), given(g.dw2), given(g.db2)};
}

NormGrads NormBackward::define(const Tensor& dy_, const Maybe& dy2, const Maybe& dh, const Maybe& h,
                               const Maybe& x_hat_, const Maybe& x, const Maybe& z_,
                               const Maybe& row_scale, const Maybe& w, const Maybe& b,
                               const Maybe& w2, const Maybe& mean, const Maybe&,
                               const Tensor& rstd_, const Options& wants) {
  const NormOptions& o = wants.norm;
  const DType dtype = rstd_.dtype();
  const Tensor dy = dy_.to(dtype), z = z_ ? z_->to(dtype) : Tensor();
  const int64_t cols = dy.shape().back();
  const bool gate_last = o.gate == GateOrder::norm_then_gate;
  Tensor gate, x_hat, rstd;
  if (x_hat_) {
    if (gate_last) gate = activation(z, o);
    x_hat = x_hat_->to(dtype), rstd = rstd_.unsqueeze(-1);
  } else {
    const Formula f(h->to(dtype), z, o);
    gate = f.gate, x_hat = f.x_hat, rstd = f.rstd;
  }
  const Tensor multiplied = as_multiplied(x_hat, wants.x_dtype, o);
  const Tensor dn = gate_last ? dy * gate : dy;
  Tensor g = w ? dn * weight_of(*w, o, dtype, cols) : dn;
  if (dy2) g = g + dy2->to(dtype) * weight_of(*w2, o, dtype, cols);
  Tensor du = through_norm(g, x_hat, rstd, o);
  if (o.probe) {
    const NoGrad values;
    const Tensor v = grouped(g.detach(), o), unit = grouped(x_hat.detach(), o);
    *o.probe = {.mean = mean.value_or(Tensor()),
                .rstd = rstd_,
                .mean_gx = over_group(v * unit, o).reshape(rstd_.shape()),
                .g_norm = sqrt(v.square().sum(-1)),
                .du_norm = sqrt(grouped(du.detach(), o).square().sum(-1))};
  }

  NormGrads grads;
  if (wants.dw) grads.dw = sum_rows(dn * multiplied, w ? w->numel() : w2->numel(), *wants.dw);
  if (wants.db) grads.db = sum_rows(dn, w ? w->numel() : b->numel(), *wants.db);
  if (wants.dw2) grads.dw2 = sum_rows(dy2->to(dtype) * multiplied, w2->numel(), *wants.dw2);
  if (wants.db2) grads.db2 = sum_rows(dy2->to(dtype), w2->numel(), *wants.db2);
  Tensor total = du;
  if (gate_last && wants.dz)
    grads.dz = (dy * affine(multiplied, w, b, o) * activation_slope(z, o)).to(*wants.dz);
  if (o.gate == GateOrder::gate_then_norm) {
    total = du * gate;
    if (wants.dz) grads.dz = (du * h->to(dtype) * activation_slope(z, o)).to(*wants.dz);
  }
  if (dh) total = total + dh->to(dtype);
  if (wants.dresidual) grads.dresidual = total.to(*wants.dresidual);
  if (wants.dx) grads.dx = dropped_and_scaled(total, row_scale, o).to(*wants.dx);
  if (wants.drow_scale)
    grads.drow_scale =
        (total * dropped_and_scaled(x->to(dtype), none, o)).sum(-1).to(*wants.drow_scale);
  return grads;
}

NormGrads NormBackward::forward(Context&, const Tensor& dy, const Maybe& dy2, const Maybe& dh,
                                const Maybe& h, const Maybe& x_hat, const Maybe& x, const Maybe& z,
                                const Maybe& row_scale, const Maybe& w, const Maybe& b,
                                const Maybe& w2, const Maybe& mean, const Maybe& mean_rest,
                                const Tensor& rstd, const Options& wants) {
  const Read d = even(dy), d2 = even(dy2), more = even(dh);
  const Read u = even(h), from = even(x), gate = even(z);
  const Read scale = dense(row_scale), gain = dense(w), bias = dense(b), gain2 = dense(w2);
  const auto made = [&](const Shape& shape, std::optional<DType> dtype) {
    return detail::made(shape, dtype, dy.device());
  };
  const Shape weight = w ? w->shape() : b ? b->shape() : Shape{dy.shape().back()};
  // Gate and signal are often parts of one projection's rows: so are their gradients then.
  const bool beside = z && wants.dz == z->dtype() && has_even_rows(*z);
  NormGrads grads{.dx = made(dy.shape(), wants.dx),
                  .dresidual = made(dy.shape(), wants.dresidual),
                  .dw = made(weight, wants.dw),
                  .db = made(weight, wants.db),
                  .dz = beside ? detail::empty_gradient(*z) : made(dy.shape(), wants.dz),
                  .drow_scale = made(row_shape(dy), wants.drow_scale),
                  .dw2 = made(w2 ? w2->shape() : weight, wants.dw2),
                  .db2 = made(w2 ? w2->shape() : weight, wants.db2)};
  NormProbe unseen, &probe = wants.norm.probe ? *wants.norm.probe : unseen;
  if (wants.norm.probe) make_probe(probe, mean, rstd);
  const auto is_itself = [](const Read& r, const Maybe& t) { return !t || r.get() == &*t; };
  const NormBackwardArgs k{.options = wants.norm,
                           .x_dtype = wants.x_dtype,
                           .dy = rows(d),
                           .dy2 = rows(d2),
                           .dh = rows(more),
                           .h = rows(u),
                           .x_hat = rows(x_hat),
                           .x = rows(from),
                           .z = rows(gate),
                           .row_scale = vec(scale),
                           .w = vec(gain),
                           .b = vec(bias),
                           .w2 = vec(gain2),
                           .mean = vec(mean),
                           .mean_rest = vec(mean_rest),
                           .rstd = rstd,
                           .dx = out_rows(grads.dx),
                           .dresidual = out_rows(grads.dresidual),
                           .dz = out_rows(grads.dz),
                           .dw = out_vec(grads.dw),
                           .db = out_vec(grads.db),
                           .dw2 = out_vec(grads.dw2),
                           .db2 = out_vec(grads.db2),
                           .drow_scale = out_vec(grads.drow_scale),
                           .mean_gx = probe.mean_gx,
                           .g_norm = probe.g_norm,
                           .du_norm = probe.du_norm,
                           .settled = wants.saved && detail::running_sweeps() > 0 &&
                                      is_itself(u, h) && is_itself(gain, w) && is_itself(bias, b)};
  if constexpr (kBuiltWithCuda)
    if (dy.device().is_cuda()) {
      const auto given = [](const Maybe& t) { return t.value_or(Tensor()); };
      const std::array weights{given(grads.dw), given(grads.db), given(grads.dw2),
                               given(grads.db2)};
      detail::run_with_aside(dy.device(), weights, [&] { dispatch(dy.device(), k); });
      return grads;
    }
  dispatch(dy.device(), k);
  return grads;
}

}  // namespace norma
