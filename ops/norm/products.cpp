#include "norma/ops/norm/products.h"

#include "norma/core/autograd.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/norm/formula.h"

namespace norma {

using namespace detail;

namespace {

/// a + b, each of which may be absent.
Maybe plus(const Maybe& a, const Maybe& b) { return a && b ? Maybe(*a + *b) : a ? a : b; }

void require_tangents(const Tensor& x, const Tensor& x_dot, const NormInputs& inputs,
                      const NormInputs& tangents) {
  const auto check = [](std::string_view what, const Maybe& t, const Maybe& dot) {
    if (dot && !t) throw ValueError("norm_jvp: a tangent of {} needs {} itself", what, what);
    if (dot && dot->shape() != t->shape())
      throw ShapeError("norm_jvp: the tangent of {} must be like it, {}, but is {}", what,
                       t->shape(), dot->shape());
  };
  check("x", x, x_dot), check("w", inputs.w, tangents.w), check("b", inputs.b, tangents.b);
  check("z", inputs.z, tangents.z), check("residual", inputs.residual, tangents.residual);
  check("row_scale", inputs.row_scale, tangents.row_scale);
  check("w2", inputs.w2, tangents.w2), check("b2", inputs.b2, tangents.b2);
}

}  // namespace

NormTangents norm_jvp(const Tensor& x, const Tensor& x_dot, const NormInputs& inputs,
                      const NormInputs& tangents, const NormOptions& o) {
  const TensorSpec out = Norm::check(x, inputs.w, inputs.b, inputs.z, inputs.residual,
                                     inputs.row_scale, inputs.w2, inputs.b2, o);
  require_tangents(x, x_dot, inputs, tangents);
  const DType dtype = stats_dtype(x.dtype());
  const int64_t cols = x.shape().back();
  const auto wide = [&](const Maybe& t) { return t ? Maybe(t->to(dtype)) : none; };
  const NormResult r = Norm::define(x, inputs.w, inputs.b, inputs.z, inputs.residual,
                                    inputs.row_scale, inputs.w2, inputs.b2, o);
  const Tensor h = r.h.value_or(x).to(dtype), z = inputs.z ? inputs.z->to(dtype) : Tensor();
  const Formula f(h, z, o);
  const Tensor x_hat = as_multiplied(f.x_hat, x.dtype(), o);

  Tensor h_dot = dropped_and_scaled(x_dot.to(dtype), inputs.row_scale, o);
  if (tangents.row_scale) h_dot = h_dot + dropped_and_scaled(x.to(dtype), tangents.row_scale, o);
  h_dot = *plus(h_dot, wide(tangents.residual));
  Maybe gate_dot;
  if (tangents.z) gate_dot = activation_slope(z, o) * tangents.z->to(dtype);
  Tensor u_dot = h_dot;
  if (o.gate == GateOrder::gate_then_norm) {
    u_dot = h_dot * f.gate;
    if (gate_dot) u_dot = u_dot + h * *gate_dot;
  }
  const Tensor unit_dot = through_norm(u_dot, f.x_hat, f.rstd, o);
  const auto affine_dot = [&](const Maybe& w, const Maybe& w_dot, const Maybe& b_dot) {
    Tensor n = w ? unit_dot * weight_of(*w, o, dtype, cols) : unit_dot;
    if (w_dot) n = n + x_hat * whole_row(*w_dot, dtype, cols);
    return b_dot ? n + whole_row(*b_dot, dtype, cols) : n;
  };
  Tensor y_dot = affine_dot(inputs.w, tangents.w, tangents.b);
  if (o.gate == GateOrder::norm_then_gate) {
    y_dot = y_dot * f.gate;
    if (gate_dot) y_dot = y_dot + affine(x_hat, inputs.w, inputs.b, o) * *gate_dot;
  }
  NormTangents result;
  result.y = y_dot.to(out.dtype);
  if (inputs.w2) result.y2 = affine_dot(inputs.w2, tangents.w2, tangents.b2).to(out.dtype);
  if (r.h) result.h = h_dot.to(r.h->dtype());
  return result;
}

NormGrads detail::gradients_of_y(const Tensor& x, const NormResult& r, const Tensor& dy,
                                 const NormInputs& in, const NormOptions& o) {
  NormOptions from_h = o;
  from_h.saves = NormSaves::input;
  const auto present = [](const Tensor& t) { return t.defined() ? Maybe(t) : none; };
  const auto dtype = [](const Maybe& t) { return t ? std::optional(t->dtype()) : std::nullopt; };
  return apply<NormBackward>(dy, none, none, r.h ? *r.h : x, none, in.row_scale ? Maybe(x) : none,
                             in.z, in.row_scale, in.w, in.b, none, present(r.mean.value),
                             present(r.mean_rest.value), r.rstd.value,
                             {.norm = from_h,
                              .x_dtype = x.dtype(),
                              .dx = x.dtype(),
                              .dresidual = dtype(in.residual),
                              .dw = dtype(in.w),
                              .db = dtype(in.b),
                              .dz = dtype(in.z),
                              .drow_scale = dtype(in.row_scale)});
}

NormGrads norm_vjp(const Tensor& x, const Tensor& v, const NormInputs& in, const NormOptions& o) {
  const NoGrad plain;
  const NormResult r = apply<Norm>(x, in.w, in.b, in.z, in.residual, in.row_scale, in.w2, in.b2, o);
  if (v.shape() != r.y.shape())
    throw ShapeError("norm_vjp: v must be like y, {}, but is {}", r.y.shape(), v.shape());
  return detail::gradients_of_y(x, r, v, in, o);
}

}  // namespace norma
