#include "norma/ops/matmul/gelu_mlp.h"

#include "norma/core/dispatch.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/matmul/kernels.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/matmul/product.h"
#include "norma/ops/reduce/reduce.h"

namespace norma {
namespace {

Tensor rows_of(const Tensor& t) { return t.reshape({-1, t.shape().back()}); }
Tensor rows_like(const Tensor& x, int64_t cols) {
  return empty({x.size(0), cols}, x.dtype(), x.device());
}

/// Whether GELU is an op of its own: a processor's products are of float32, which half types are
/// rounded from first.
bool is_apart(const Tensor& x) { return detail::product_dtype(x.spec()) != x.dtype(); }

struct Hidden {
  Tensor u, a;
};
/// x (rows, d).
Hidden hidden(const Tensor& x, const Tensor& w_, const std::optional<Tensor>& b) {
  if (is_apart(x)) {
    const Tensor u = linear(x, w_, b);
    return {u, gelu_tanh(u)};
  }
  const Tensor w = detail::rounded_weight(w_, x.dtype());
  Hidden h{rows_like(x, w.size(0)), rows_like(x, w.size(0))};
  const Tensor left = detail::product_operand(x), right = detail::product_operand(w.t());
  const Tensor bias = b ? detail::dense(detail::rounded_weight(*b, x.dtype())) : Tensor();
  dispatch(x.device(), MatmulArgs{.a = left,
                                  .b = right,
                                  .bias = bias,
                                  .c = h.a,
                                  .epilogue = MatmulEpilogue::gelu,
                                  .pre = h.u});
  return h;
}
/// (dy w) ⊙ gelu_tanh′(u)
Tensor hidden_gradient(const Tensor& dy, const Tensor& w_, const Tensor& u) {
  const Tensor w = detail::rounded_weight(w_, dy.dtype());
  if (is_apart(dy)) return apply<GeluTanhBackward>(matmul(dy, w), u);
  Tensor du = rows_like(dy, w.size(1));
  const Tensor left = detail::product_operand(dy), right = detail::product_operand(w);
  dispatch(dy.device(), MatmulArgs{.a = left,
                                   .b = right,
                                   .bias = {},
                                   .c = du,
                                   .epilogue = MatmulEpilogue::gelu_backward,
                                   .pre = u});
  return du;
}

struct WeightGrads {
  std::optional<Tensor> dw, db;
};
WeightGrads weight_grads(const Tensor& dy, const Tensor& x, DType dtype, bool dw, bool db) {
  WeightGrads grads;
  if (dw) {
    auto both = apply<LinearWeightBackward>(dy, x, {.dtype = dtype, .db = db});
    grads.dw = std::move(both.dw), grads.db = std::move(both.db);
  } else if (db) {
    grads.db = dy.to(dtype).sum(0);
  }
  return grads;
}

}  // namespace

TensorSpec GeluMlp::check(const Tensor& x, const Tensor& w_in, const std::optional<Tensor>& b_in,
                          const Tensor& w_out, const std::optional<Tensor>& b_out) {
  for (const Tensor* t : {&w_in, &w_out, b_in ? &*b_in : &w_in, b_out ? &*b_out : &w_out})
    if (t->dtype() != w_in.dtype() || !is_floating(x.dtype()) ||
        (x.dtype() != t->dtype() && !detail::is_rounded_for(x, *t)))
      throw DTypeError("{}: x and the weights must have one floating dtype, but are {} and {}",
                       name, to_string(x.dtype()), to_string(t->dtype()));
  if (w_in.dim() != 2 || w_out.dim() != 2 || x.dim() < 2 || x.size(-1) != w_in.size(1) ||
      w_out.size(1) != w_in.size(0))
    throw ShapeError(
        "{}: w_in must be (d_ff, d) and w_out (d_out, d_ff) for x (…, d), but they are {}, {} and "
        "{}",
        name, w_in.shape(), w_out.shape(), x.shape());
  if (b_in && b_in->shape() != Shape{w_in.size(0)})
    throw ShapeError("{}: b_in must be ({},), but is {}", name, w_in.size(0), b_in->shape());
  if (b_out && b_out->shape() != Shape{w_out.size(0)})
    throw ShapeError("{}: b_out must be ({},), but is {}", name, w_out.size(0), b_out->shape());
  TensorSpec spec = x.spec();
  spec.shape[spec.shape.dim() - 1] = w_out.size(0);
  return spec;
}

Tensor GeluMlp::define(const Tensor& x, const Tensor& w_in, const std::optional<Tensor>& b_in,
                       const Tensor& w_out, const std::optional<Tensor>& b_out) {
  return linear(gelu_tanh(linear(x, w_in, b_in)), w_out, b_out);
}

Tensor GeluMlp::forward(Context& ctx, const Tensor& x, const Tensor& w_in,
                        const std::optional<Tensor>& b_in, const Tensor& w_out,
                        const std::optional<Tensor>& b_out) {
  ctx.save(x, w_in, b_in, w_out);
  if (const auto all = detail::small_mlp(rows_of(x), w_in, b_in, w_out, b_out)) {
    ctx.save_constant(all->u, all->a);
    return all->y.reshape(ctx.output().shape);
  }
  const Hidden h = hidden(rows_of(x), w_in, b_in);
  ctx.save_constant(h.u, h.a);
  return linear(h.a, w_out, b_out).reshape(ctx.output().shape);
}

std::vector<Tensor> GeluMlp::backward(Context& ctx, const Tensor& dy) {
  const GeluMlpGrads g =
      apply<GeluMlpBackward>(dy, ctx.saved(0), ctx.saved(1), ctx.saved_optional(2), ctx.saved(3),
                             ctx.saved(4), ctx.saved(5),
                             {.dx = ctx.needs(0),
                              .dw_in = ctx.needs(1),
                              .db_in = ctx.needs(2),
                              .dw_out = ctx.needs(3),
                              .db_out = ctx.needs(4),
                              .saved = true});
  const auto or_none = [](const std::optional<Tensor>& t) { return t.value_or(Tensor()); };
  return {or_none(g.dx), or_none(g.dw_in), or_none(g.db_in), or_none(g.dw_out), or_none(g.db_out)};
}

GeluMlpGrads GeluMlpBackward::define(const Tensor& dy_, const Tensor& x_, const Tensor& w_in,
                                     const std::optional<Tensor>& b_in, const Tensor& w_out,
                                     const Tensor&, const Tensor&, const Options& o) {
  const Tensor dy = rows_of(dy_), x = rows_of(x_), u = linear(x, w_in, b_in);
  const DType weights = w_in.dtype();
  GeluMlpGrads grads;
  if (o.dw_out) grads.dw_out = matmul(dy.to(weights).t(), gelu_tanh(u).to(weights));
  if (o.db_out) grads.db_out = dy.to(weights).sum(0);
  const Tensor du = apply<GeluTanhBackward>(matmul(dy, w_out.to(dy.dtype())), u);
  if (o.dw_in) grads.dw_in = matmul(du.to(weights).t(), x.to(weights));
  if (o.db_in) grads.db_in = du.to(weights).sum(0);
  if (o.dx) grads.dx = matmul(du, w_in.to(du.dtype())).reshape(x_.shape());
  return grads;
}

GeluMlpGrads GeluMlpBackward::forward(Context&, const Tensor& dy_, const Tensor& x_,
                                      const Tensor& w_in, const std::optional<Tensor>&,
                                      const Tensor& w_out, const Tensor& u, const Tensor& a,
                                      const Options& o) {
  const Tensor dy = rows_of(dy_), x = rows_of(x_);
  const DType weights = w_in.dtype();
  GeluMlpGrads grads;
  const bool inner = o.dx || o.dw_in || o.db_in;
  const bool together = o.dw_in && o.dw_out && !o.db_in && !o.db_out;
  if (o.dx && o.dw_in && o.dw_out)
    if (auto all = detail::small_mlp_grads(dy, a, u, x, w_in, w_out, o.db_in, o.db_out, o.saved))
      return {.dx = all->dx.reshape(x_.shape()),
              .dw_in = all->dw_in,
              .db_in = all->db_in,
              .dw_out = all->dw_out,
              .db_out = all->db_out};
  Tensor du;
  const auto make_du = [&] { return du = hidden_gradient(dy, w_out, u); };
  if (auto both = together ? detail::mlp_weight_grads(dy, a, x, weights, make_du) : none) {
    grads.dw_in = std::move(both->dw_in), grads.dw_out = std::move(both->dw_out);
    if (o.dx) grads.dx = matmul(du, detail::rounded_weight(w_in, du.dtype())).reshape(x_.shape());
    return grads;
  } else {
    WeightGrads out = weight_grads(dy, a, weights, o.dw_out, o.db_out);
    grads.dw_out = std::move(out.dw), grads.db_out = std::move(out.db);
    if (!inner) return grads;
    make_du();
  }
  WeightGrads in = weight_grads(du, x, weights, o.dw_in, o.db_in);
  grads.dw_in = std::move(in.dw), grads.db_in = std::move(in.db);
  if (o.dx) grads.dx = matmul(du, detail::rounded_weight(w_in, du.dtype())).reshape(x_.shape());
  return grads;
}

Tensor gelu_mlp(const Tensor& x, const Tensor& w_in, const std::optional<Tensor>& b_in,
                const Tensor& w_out, const std::optional<Tensor>& b_out) {
  return apply<GeluMlp>(x, w_in, b_in, w_out, b_out);
}

}  // namespace norma
