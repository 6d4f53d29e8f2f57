#include "norma/ops/ssd/ssd.h"

#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/compare.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/ssd/kernels.h"
#include "norma/ops/view/view.h"

namespace norma {
namespace {

using Maybe = std::optional<Tensor>;

void require_shape(std::string_view what, std::string_view dims, const Maybe& t,
                   const Shape& wanted) {
  if (t && t->shape() != wanted)
    throw ShapeError("{}: {} must be {} = {}, but is {}", Ssd::name, what, dims, wanted,
                     t->shape());
}
void require_dtype(std::string_view what, const Maybe& t, DType wanted) {
  if (t && t->dtype() != wanted)
    throw DTypeError("{}: {} must be {}, but is {}", Ssd::name, what, to_string(wanted),
                     to_string(t->dtype()));
}
void require_floating(std::string_view what, const Maybe& t) {
  if (t && !is_floating(t->dtype()))
    throw DTypeError("{}: {} must be floating, but is {}", Ssd::name, what, to_string(t->dtype()));
}

/// dt + dt_bias, and what it becomes.
Tensor raw_steps(const Tensor& dt, const Maybe& dt_bias, DType dtype) {
  return dt_bias ? dt.to(dtype) + dt_bias->to(dtype) : dt.to(dtype);
}
Tensor step_sizes(const Tensor& raw, const SsdOptions& o) {
  const Tensor free = o.dt_softplus ? softplus(raw) : raw;
  return where(free < o.dt_min, o.dt_min, where(free > o.dt_max, o.dt_max, free));
}
/// (B, T, G, N) as (B, T, H, N).
Tensor for_each_head(const Tensor& t, int64_t heads) {
  const int64_t shared = heads / t.size(2);
  if (shared == 1) return t;
  return t.unsqueeze(3)
      .expand({t.size(0), t.size(1), t.size(2), shared, t.size(3)})
      .reshape({t.size(0), t.size(1), heads, t.size(3)});
}
/// Step t of (B, T, H, n) as (B, H, n, 1) or (B, H, 1, n).
Tensor as_column(const Tensor& t, int64_t step) { return t.select(1, step).unsqueeze(3); }
Tensor as_row(const Tensor& t, int64_t step) { return t.select(1, step).unsqueeze(2); }
/// Step t of (B, T, H) as (B, H, 1, 1).
Tensor as_number(const Tensor& t, int64_t step) {
  return t.select(1, step).unsqueeze(2).unsqueeze(3);
}
/// The arguments of definition and closed form in the state's dtype, b and c for each head.
struct Formula {
  DType dtype;
  Tensor x, a, b, c, raw, delta, decay, input;
  Tensor first;  // the state before step 0

  Formula(const Tensor& x_, const Tensor& dt, const Tensor& a_, const Tensor& b_, const Tensor& c_,
          const Maybe& dt_bias, const Maybe& state, const SsdOptions& o)
      : dtype(stats_dtype(x_.dtype())),
        x(x_.to(dtype)),
        a(a_.to(dtype)),
        b(for_each_head(b_.to(dtype), x.size(2))),
        c(for_each_head(c_.to(dtype), x.size(2))),
        raw(raw_steps(dt, dt_bias, dtype)),
        delta(step_sizes(raw, o)),
        decay(exp(delta * a)),
        input(delta.unsqueeze(3) * x),
        first(state ? *state
                    : zeros({x.size(0), x.size(2), x.size(3), b.size(3)}, dtype, x.device())) {}
};
/// The gradient of for_each_head.
Tensor over_heads(const Tensor& t, int64_t groups) {
  return t.reshape({t.size(0), t.size(1), groups, t.size(2) / groups, t.size(3)}).sum(3);
}
/// (H) or (H, P) as it multiplies (B, T, H, P).
Tensor skip(const Tensor& d, DType dtype) { return (d.dim() == 1 ? d.unsqueeze(1) : d).to(dtype); }

/// t, or a dense copy where it is not dense beyond its second dimension.
Tensor ready(const Tensor& t) {
  int64_t stride = 1;
  for (int i = t.dim() - 1; i >= 2; stride *= t.shape()[i--])
    if (t.strides()[i] != stride && t.shape()[i] != 1) return detail::dense(t);
  return t;
}
Tensor dense_stats(const Tensor& t, DType stats) { return detail::dense(t.to(stats)); }
Maybe dense_stats(const Maybe& t, DType stats) { return t ? Maybe(dense_stats(*t, stats)) : none; }
/// d as (H, P).
Maybe wide_skip(const Maybe& d, const Tensor& x, DType stats) {
  if (!d) return none;
  return detail::dense(skip(*d, stats).expand({x.size(2), x.size(3)}));
}
Tensor or_absent(const Maybe& t) { return t.value_or(Tensor()); }

}  // namespace

void Ssd::check(const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b,
                const Tensor& c, const Maybe& d, const Maybe& dt_bias, const Maybe& state,
                const Options& o) {
  if (x.dim() != 4 || x.size(1) < 1)
    throw ShapeError("{}: x must be (B, T, H, P) with T of 1 or more, but is {}", name, x.shape());
  const int64_t batch = x.size(0), length = x.size(1), heads = x.size(2), head_dim = x.size(3);
  if (b.dim() != 4 || b.size(0) != batch || b.size(1) != length || b.size(2) < 1 ||
      heads % b.size(2) != 0)
    throw ShapeError("{}: b must be (B, T, G, N) with G dividing the {} heads of x {}, but is {}",
                     name, heads, x.shape(), b.shape());
  require_shape("dt", "(B, T, H)", dt, {batch, length, heads});
  require_shape("a", "(H)", a, {heads});
  require_shape("c", "(B, T, G, N)", c, b.shape());
  if (d && d->shape() != Shape{heads} && d->shape() != Shape{heads, head_dim})
    throw ShapeError("{}: d must be (H) = {} or (H, P) = {}, but is {}", name, Shape{heads},
                     Shape{heads, head_dim}, d->shape());
  require_shape("dt_bias", "(H)", dt_bias, {heads});
  require_shape("state", "(B, H, P, N)", state, {batch, heads, head_dim, b.size(3)});
  require_floating("x", x);
  require_dtype("dt", dt, x.dtype());
  require_dtype("b", b, x.dtype());
  require_dtype("c", c, x.dtype());
  require_floating("a", a);
  require_floating("d", d);
  require_floating("dt_bias", dt_bias);
  require_dtype("state", state, stats_dtype(x.dtype()));
  if (o.chunk < 0) throw ValueError("{}: chunk must be 0 or more, but is {}", name, o.chunk);
  if (!(o.dt_min <= o.dt_max))
    throw ValueError("{}: dt_min must not exceed dt_max, but they are {} and {}", name, o.dt_min,
                     o.dt_max);
}

SsdResult Ssd::define(const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b,
                      const Tensor& c, const Maybe& d, const Maybe& dt_bias, const Maybe& state,
                      const Options& o) {
  const Formula f(x, dt, a, b, c, dt_bias, state, o);
  Tensor s = f.first;
  std::vector<Tensor> steps;
  for (int64_t t = 0; t < x.size(1); ++t) {
    s = as_number(f.decay, t) * s + as_column(f.input, t) * as_row(f.b, t);
    steps.push_back((s * as_row(f.c, t)).sum(-1));
  }
  Tensor y = stack(steps, 1);
  if (d) y = y + skip(*d, f.dtype) * f.x;
  SsdResult result;
  result.y = y.to(x.dtype());
  if (o.final_state) result.state = s;
  return result;
}

bool Ssd::runs_on(Device device, DType) { return device.is_cpu(); }
SsdResult Ssd::forward(Context& ctx, const Tensor& x, const Tensor& dt, const Tensor& a,
                       const Tensor& b, const Tensor& c, const Maybe& d, const Maybe& dt_bias,
                       const Maybe& state, const Options& o) {
  const DType stats = stats_dtype(x.dtype());
  const Tensor u = ready(x), steps = ready(dt), inputs = ready(b), outputs = ready(c);
  const Tensor rates = dense_stats(a, stats);
  const Maybe wide = wide_skip(d, x, stats), bias = dense_stats(dt_bias, stats),
              first = dense_stats(state, stats);
  SsdResult result;
  result.y = empty(x.spec());
  if (o.final_state)
    result.state = empty({x.size(0), x.size(2), x.size(3), b.size(3)}, stats, x.device());
  run(Cpu{}, SsdForwardArgs{.dt_softplus = o.dt_softplus,
                            .dt_min = o.dt_min,
                            .dt_max = o.dt_max,
                            .chunk = o.chunk,
                            .x = u,
                            .dt = steps,
                            .b = inputs,
                            .c = outputs,
                            .a = rates,
                            .d = or_absent(wide),
                            .dt_bias = or_absent(bias),
                            .state = or_absent(first),
                            .y = result.y,
                            .last_state = or_absent(result.state)});
  ctx.save(x, dt, a, b, c, d, dt_bias, state);
  return result;
}
SsdGrads Ssd::backward(Context& ctx, const Maybe& dy, const Maybe& dlast_state) {
  const Tensor x = ctx.saved(0);
  return apply<SsdBackward>(dy ? *dy : zeros_like(x), dlast_state, x, ctx.saved(1), ctx.saved(2),
                            ctx.saved(3), ctx.saved(4), ctx.saved_optional(5),
                            ctx.saved_optional(6), ctx.saved_optional(7), ctx.options());
}

SsdGrads SsdBackward::define(const Tensor& dy_, const Maybe& dlast_state, const Tensor& x,
                             const Tensor& dt, const Tensor& a, const Tensor& b, const Tensor& c,
                             const Maybe& d, const Maybe& dt_bias, const Maybe& state,
                             const Options& o) {
  const Formula f(x, dt, a, b, c, dt_bias, state, o);
  std::vector<Tensor> s{f.first};
  for (int64_t t = 0; t < x.size(1); ++t)
    s.push_back(as_number(f.decay, t) * s.back() + as_column(f.input, t) * as_row(f.b, t));
  const Tensor dy = dy_.to(f.dtype);
  const size_t length = s.size() - 1;
  std::vector<Tensor> db(length), dc(length), dinput(length), dfade(length);
  Tensor g = dlast_state ? *dlast_state : zeros_like(f.first);
  for (size_t i = length; i-- > 0;) {
    const auto t = static_cast<int64_t>(i);
    g = g + as_column(dy, t) * as_row(f.c, t);
    dc[i] = (s[i + 1] * as_column(dy, t)).sum(2);
    db[i] = (g * as_column(f.input, t)).sum(2);
    dinput[i] = (g * as_row(f.b, t)).sum(-1);
    g = g * as_number(f.decay, t);
    dfade[i] = sum(g * s[i], {2, 3});
  }
  const Tensor du = stack(dinput, 1), fading = stack(dfade, 1);  // of Δx and Δa
  SsdGrads grads;
  Tensor dx = du * f.delta.unsqueeze(3);
  if (d) {
    dx = dx + dy * skip(*d, f.dtype);
    grads.dd =
        sum_to(sum(dy * f.x, {0, 1}), skip(*d, f.dtype).shape()).reshape(d->shape()).to(d->dtype());
  }
  Tensor ddt = (du * f.x).sum(-1) + fading * f.a;
  const Tensor free = o.dt_softplus ? softplus(f.raw) : f.raw;
  ddt = where(free < o.dt_min, 0, where(free > o.dt_max, 0, ddt));
  if (o.dt_softplus) ddt = ddt * sigmoid(f.raw);
  if (dt_bias) grads.ddt_bias = sum(ddt, {0, 1}).to(dt_bias->dtype());
  if (state) grads.dstate = g;
  grads.dx = dx.to(x.dtype()), grads.ddt = ddt.to(dt.dtype());
  grads.da = sum(fading * f.delta, {0, 1}).to(a.dtype());
  grads.db = over_heads(stack(db, 1), b.size(2)).to(b.dtype());
  grads.dc = over_heads(stack(dc, 1), c.size(2)).to(c.dtype());
  return grads;
}

bool SsdBackward::runs_on(Device device, DType) { return device.is_cpu(); }
SsdGrads SsdBackward::forward(Context&, const Tensor& dy, const Maybe& dlast_state, const Tensor& x,
                              const Tensor& dt, const Tensor& a, const Tensor& b, const Tensor& c,
                              const Maybe& d, const Maybe& dt_bias, const Maybe& state,
                              const Options& o) {
  const DType stats = stats_dtype(x.dtype());
  const Tensor slope = ready(dy), u = ready(x), steps = ready(dt), inputs = ready(b),
               outputs = ready(c), rates = dense_stats(a, stats);
  const Maybe wide = wide_skip(d, x, stats), bias = dense_stats(dt_bias, stats),
              first = dense_stats(state, stats), dlast = dense_stats(dlast_state, stats);
  SsdGrads grads;
  grads.dx = empty(x.spec()), grads.ddt = empty(dt.spec());
  grads.db = empty(b.spec()), grads.dc = empty(c.spec());
  if (state) grads.dstate = empty(state->spec());
  const Tensor da = empty(a.shape(), stats, a.device());
  const Maybe dd = d ? Maybe(empty({x.size(2), x.size(3)}, stats, x.device())) : none;
  const Maybe ddt_bias = dt_bias ? Maybe(empty(a.shape(), stats, a.device())) : none;
  run(Cpu{}, SsdBackwardArgs{.dt_softplus = o.dt_softplus,
                             .dt_min = o.dt_min,
                             .dt_max = o.dt_max,
                             .chunk = o.chunk,
                             .dy = slope,
                             .x = u,
                             .dt = steps,
                             .b = inputs,
                             .c = outputs,
                             .a = rates,
                             .d = or_absent(wide),
                             .dt_bias = or_absent(bias),
                             .state = or_absent(first),
                             .dlast_state = or_absent(dlast),
                             .dx = grads.dx,
                             .ddt = grads.ddt,
                             .db = grads.db,
                             .dc = grads.dc,
                             .da = da,
                             .dd = or_absent(dd),
                             .ddt_bias = or_absent(ddt_bias),
                             .dstate = or_absent(grads.dstate)});
  grads.da = da.to(a.dtype());
  if (d) grads.dd = (d->dim() == 1 ? dd->sum(-1) : *dd).to(d->dtype());
  if (dt_bias) grads.ddt_bias = ddt_bias->to(dt_bias->dtype());
  return grads;
}

SsdResult ssd(const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b, const Tensor& c,
              const SsdInputs& more, const SsdOptions& options) {
  return apply<Ssd>(x, dt, a, b, c, more.d, more.dt_bias, more.state, options);
}

}  // namespace norma
