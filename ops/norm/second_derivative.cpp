#include "norma/ops/norm/second_derivative.h"

#include "norma/core/dispatch.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/norm/arguments.h"
#include "norma/ops/norm/formula.h"
#include "norma/ops/reduce/reduce.h"

namespace norma {

using namespace detail;

bool has_fused_second_derivative(const NormOptions& o, const Maybe& row_scale) {
  return o.gate == GateOrder::no_gate && o.dropout == 0 && !row_scale &&
         o.casting == Casting::wide && o.saves == NormSaves::input;
}

NormGrads PlainNormBackward::define(const Tensor& dy, const Maybe& dh, const Tensor& h,
                                    const Maybe& w, const Maybe& b, const Maybe& mean,
                                    const Maybe& mean_rest, const Tensor& rstd, const Options& o) {
  return NormBackward::define(dy, none, dh, h, none, none, none, none, w, b, none, mean, mean_rest,
                              rstd, o);
}
NormGrads PlainNormBackward::forward(Context& ctx, const Tensor& dy, const Maybe& dh,
                                     const Tensor& h, const Maybe& w, const Maybe& b,
                                     const Maybe& mean, const Maybe& mean_rest, const Tensor& rstd,
                                     const Options& o) {
  ctx.save(dy, h, w);
  ctx.save_constant(mean, mean_rest, rstd);
  return NormBackward::forward(ctx, dy, none, dh, h, none, none, none, none, w, b, none, mean,
                               mean_rest, rstd, o);
}

std::vector<Tensor> PlainNormBackward::backward(Context& ctx, const Maybe& of_dx,
                                                const Maybe& of_dresidual, const Maybe& of_dw,
                                                const Maybe& of_db, const Maybe&, const Maybe&,
                                                const Maybe&, const Maybe&) {
  enum { kDy, kDh, kH, kW };
  const auto wanted = [&](int i) {
    return ctx.needs(i) ? std::optional(ctx.input(i).dtype) : std::nullopt;
  };
  const Options& o = ctx.options();
  const Tensor rstd = ctx.saved(5);
  Maybe v = of_dx ? of_dx : of_dresidual;
  if (of_dx && of_dresidual) v = of_dx->to(rstd.dtype()) + of_dresidual->to(rstd.dtype());
  const NormSecondGrads g =
      apply<NormSecond>(ctx.saved(0), ctx.saved(1), ctx.saved_optional(2), ctx.saved_optional(3),
                        ctx.saved_optional(4), rstd, v, of_dw, of_db,
                        {.norm = o.norm, .dy = wanted(kDy), .h = wanted(kH), .w = wanted(kW)});
  const auto given = [](const Maybe& t) { return t.value_or(Tensor()); };
  const std::optional<DType> dh = wanted(kDh);
  return {given(g.dy), dh && v ? v->to(*dh) : Tensor(), given(g.h), given(g.w)};
}

NormSecondGrads NormSecond::define(const Tensor& dy_, const Tensor& h, const Maybe& w, const Maybe&,
                                   const Maybe&, const Tensor& rstd_, const Maybe& v_,
                                   const Maybe& vw_, const Maybe& vb, const Options& wants) {
  const NormOptions& o = wants.norm;
  const DType dtype = rstd_.dtype();
  const int64_t cols = h.shape().back();
  const Formula f(h.to(dtype), Tensor(), o);
  const Tensor dy = dy_.to(dtype), g = w ? weight_of(*w, o, dtype, cols) * dy : dy;
  const Tensor v = v_ ? v_->to(dtype) : zeros_like(dy);
  const Tensor jv = through_norm(v, f.x_hat, f.rstd, o);
  NormSecondGrads grads;
  if (wants.dy) {
    Tensor d = w ? weight_of(*w, o, dtype, cols) * jv : jv;
    if (vw_) d = d + whole_row(*vw_, dtype, cols) * f.x_hat;
    if (vb) d = d + whole_row(*vb, dtype, cols);
    grads.dy = d.to(*wants.dy);
  }
  if (wants.w) grads.w = sum_rows(dy * jv, w->numel(), *wants.w);
  if (wants.h) {
    const Tensor jg = through_norm(g, f.x_hat, f.rstd, o);
    const auto by_group = [&](const Tensor& a, const Tensor& b) {
      return over_group(grouped(a * b, o), o);
    };
    const Tensor s_v = by_group(v, f.x_hat), s_g = by_group(g, f.x_hat), vjg = by_group(v, jg);
    Tensor d = s_g * grouped(jv, o) + s_v * grouped(jg, o) + vjg * grouped(f.x_hat, o);
    d = (-f.rstd * d).reshape(h.shape());
    if (vw_) d = d + through_norm(whole_row(*vw_, dtype, cols) * dy, f.x_hat, f.rstd, o);
    grads.h = d.to(*wants.h);
  }
  return grads;
}

NormSecondGrads NormSecond::forward(Context&, const Tensor& dy, const Tensor& h, const Maybe& w,
                                    const Maybe& mean, const Maybe& mean_rest, const Tensor& rstd,
                                    const Maybe& v, const Maybe& vw, const Maybe& vb,
                                    const Options& wants) {
  const Read d = even(dy), u = even(h), cotangent = even(v);
  const Read gain = dense(w), of_gain = dense(vw), of_bias = dense(vb);
  NormSecondGrads grads{.dy = made(dy.shape(), wants.dy, dy.device()),
                        .h = made(h.shape(), wants.h, dy.device()),
                        .w = made(w ? w->shape() : Shape{0}, wants.w, dy.device())};
  dispatch(dy.device(), NormSecondArgs{.options = wants.norm,
                                       .dy = rows(d),
                                       .h = rows(u),
                                       .v = rows(cotangent),
                                       .w = vec(gain),
                                       .mean = vec(mean),
                                       .mean_rest = vec(mean_rest),
                                       .rstd = rstd,
                                       .vw = vec(of_gain),
                                       .vb = vec(of_bias),
                                       .of_dy = out_rows(grads.dy),
                                       .of_h = out_rows(grads.h),
                                       .of_w = out_vec(grads.w)});
  return grads;
}

}  // namespace norma
