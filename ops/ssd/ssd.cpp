#include "norma/ops/ssd/ssd.h"

#include "norma/core/cuda/runtime.h"
#include "norma/core/dispatch.h"
#include "norma/core/gradient_memory.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/compare.h"
#include "norma/ops/elementwise/unary.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/scan/rates.h"
#include "norma/ops/scan/scan.h"
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
        a(detail::rates_of(a_, dtype, o.log_a)),
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

/// Whether kernels take t as it lies: dense beyond its second dimension.
bool is_ready(const Tensor& t) {
  int64_t stride = 1;
  for (int i = t.dim() - 1; i >= 2; stride *= t.shape()[i--])
    if (t.strides()[i] != stride && t.shape()[i] != 1) return false;
  if (!t.device().is_cuda()) return true;
  const int64_t item = size_of(t.dtype());  // rows are read 16 bytes at a time
  const auto even = [&](int64_t elements) { return elements * item % 16 == 0; };
  return even(t.offset()) && even(t.strides()[0]) && even(t.strides()[1]);
}
Tensor ready(const Tensor& t) { return is_ready(t) ? t : detail::dense(t); }
Tensor ready_gradient(const Tensor& t) {
  return is_ready(t) ? detail::empty_gradient(t) : empty(t.spec());
}
Tensor ready_steps(const Tensor& t) { return t.strides()[2] == 1 ? t : detail::dense(t); }
Tensor dense_stats(const Tensor& t, DType stats) { return detail::dense(t.to(stats)); }
Maybe dense_stats(const Maybe& t, DType stats) { return t ? Maybe(dense_stats(*t, stats)) : none; }
/// d as kernels take it: a GPU's take a number a head as it is, which spares them a launch too.
Maybe kernel_skip(const Maybe& d, const Tensor& x, DType stats) {
  if (!d || x.device().is_cuda()) return dense_stats(d, stats);
  return detail::dense(skip(*d, stats).expand({x.size(2), x.size(3)}));
}
Tensor or_absent(const Maybe& t) { return t.value_or(Tensor()); }

/// Whether the GPU's kernels by matrix products serve these sizes. In float32 a head of 64 × 128
/// fills Hopper's shared memory, and has no room on older GPUs.
bool has_products(const Tensor& x, const Tensor& b) {
  if (x.dtype() == float64 || x.size(3) != 64 || (b.size(3) != 64 && b.size(3) != 128))
    return false;
  if constexpr (kBuiltWithCuda)
    if (x.dtype() == float32 && b.size(3) == 128)
      return detail::cuda_shared_memory(x.device()) >= (int64_t{216} << 10);
  return true;
}

/// A head as P channels of a selective scan whose rows of a hold one number: on a GPU this serves
/// where no kernel by matrix products does. A scan a group.
SsdResult by_scan(const Tensor& x_, const Tensor& dt, const Tensor& a_, const Tensor& b_,
                  const Tensor& c_, const Maybe& d, const Maybe& dt_bias, const Maybe& state,
                  const SsdOptions& o) {
  const DType dtype = stats_dtype(x_.dtype());
  const int64_t batch = x_.size(0), length = x_.size(1), heads = x_.size(2), p = x_.size(3);
  const int64_t groups = b_.size(2), n = b_.size(3), width = heads * p, part = width / groups;
  const Tensor x = x_.to(dtype).reshape({batch, length, width});
  const Tensor delta = step_sizes(raw_steps(dt, dt_bias, dtype), o)
                           .unsqueeze(3)
                           .expand({batch, length, heads, p})
                           .reshape({batch, length, width});
  const Tensor a = detail::rates_of(a_, dtype, o.log_a)
                       .reshape({heads, 1, 1})
                       .expand({heads, p, n})
                       .reshape({width, n});
  const Tensor b = b_.to(dtype), c = c_.to(dtype);
  const Maybe wide = d ? Maybe(skip(*d, dtype).expand({heads, p}).reshape({width})) : none;
  const Maybe first = state ? Maybe(state->reshape({batch, width, n})) : none;
  std::vector<Tensor> y, last;
  for (int64_t g = 0; g < groups; ++g) {
    const auto cut = [&](const Maybe& t, int dim) {
      return t ? Maybe(t->slice(dim, g * part, (g + 1) * part)) : none;
    };
    const ScanResult r = selective_scan(*cut(x, 2), *cut(delta, 2), *cut(a, 0), b.select(2, g),
                                        c.select(2, g), {.d = cut(wide, 0), .state = cut(first, 1)},
                                        {.dt_softplus = false, .final_state = o.final_state});
    y.push_back(r.y);
    if (r.state) last.push_back(*r.state);
  }
  SsdResult result;
  result.y = concat(y, 2).reshape(x_.shape()).to(x_.dtype());
  if (o.final_state) result.state = concat(last, 1).reshape({batch, heads, p, n});
  return result;
}
/// Its gradients, those of absent arguments undefined.
std::vector<Tensor> by_scan_backward(const Tensor& dy, const Maybe& dlast_state,
                                     std::vector<Maybe> arguments, SsdOptions o) {
  const EnableGrad recording;
  std::vector<Tensor> leaves;
  for (Maybe& t : arguments)
    if (t) leaves.push_back(*(t = t->detach().requires_grad_()));
  o.final_state = dlast_state.has_value();
  const SsdResult r = by_scan(*arguments[0], *arguments[1], *arguments[2], *arguments[3],
                              *arguments[4], arguments[5], arguments[6], arguments[7], o);
  const std::vector<Tensor> found =
      dlast_state ? grad({r.y, *r.state}, leaves, {dy, *dlast_state}) : grad({r.y}, leaves, {dy});
  std::vector<Tensor> all(arguments.size());
  size_t next = 0;
  for (size_t i = 0; i < all.size(); ++i)
    if (arguments[i]) all[i] = found[next++];
  return all;
}

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

SsdResult Ssd::forward(Context& ctx, const Tensor& x, const Tensor& dt, const Tensor& a,
                       const Tensor& b, const Tensor& c, const Maybe& d, const Maybe& dt_bias,
                       const Maybe& state, const Options& o) {
  if (x.device().is_cuda() && !has_products(x, b)) {
    ctx.save(x, dt, a, b, c, d, dt_bias, state);
    return by_scan(x, dt, a, b, c, d, dt_bias, state, o);
  }
  const DType stats = stats_dtype(x.dtype());
  const Tensor u = ready(x), steps = ready_steps(dt), inputs = ready(b), outputs = ready(c);
  const Tensor rates = detail::kernel_rates(a, x, stats, o.log_a);
  const Maybe skips = kernel_skip(d, x, stats), bias = dense_stats(dt_bias, stats),
              first = dense_stats(state, stats);
  SsdResult result;
  result.y = empty(x.spec());
  if (o.final_state)
    result.state = empty({x.size(0), x.size(2), x.size(3), b.size(3)}, stats, x.device());
  dispatch(x.device(), SsdForwardArgs{.dt_softplus = o.dt_softplus,
                                      .log_a = detail::takes_log(x, o.log_a),
                                      .dt_min = o.dt_min,
                                      .dt_max = o.dt_max,
                                      .chunk = o.chunk,
                                      .x = u,
                                      .dt = steps,
                                      .b = inputs,
                                      .c = outputs,
                                      .a = rates,
                                      .d = or_absent(skips),
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
  const Tensor da = sum(fading * f.delta, {0, 1});
  grads.da = (o.log_a ? da * f.a : da).to(a.dtype());
  grads.db = over_heads(stack(db, 1), b.size(2)).to(b.dtype());
  grads.dc = over_heads(stack(dc, 1), c.size(2)).to(c.dtype());
  return grads;
}

SsdGrads SsdBackward::forward(Context&, const Tensor& dy, const Maybe& dlast_state, const Tensor& x,
                              const Tensor& dt, const Tensor& a, const Tensor& b, const Tensor& c,
                              const Maybe& d, const Maybe& dt_bias, const Maybe& state,
                              const Options& o) {
  if (x.device().is_cuda() && !has_products(x, b)) {
    const auto g = by_scan_backward(dy, dlast_state, {x, dt, a, b, c, d, dt_bias, state}, o);
    const auto maybe = [](const Tensor& t) { return t.defined() ? Maybe(t) : none; };
    return {g[0], g[1], g[2], g[3], g[4], maybe(g[5]), maybe(g[6]), maybe(g[7])};
  }
  const DType stats = stats_dtype(x.dtype());
  const Tensor slope = ready(dy), u = ready(x), steps = ready_steps(dt), inputs = ready(b),
               outputs = ready(c), rates = detail::kernel_rates(a, x, stats, o.log_a);
  const Maybe skips = kernel_skip(d, x, stats), bias = dense_stats(dt_bias, stats),
              first = dense_stats(state, stats), dlast = dense_stats(dlast_state, stats);
  SsdGrads grads;
  grads.dx = ready_gradient(x), grads.ddt = detail::empty_gradient(dt);
  grads.db = ready_gradient(b), grads.dc = ready_gradient(c);
  if (state) grads.dstate = empty(state->spec());
  const Tensor da = empty(a.shape(), stats, a.device());
  const Maybe dd = skips ? Maybe(empty(skips->shape(), stats, x.device())) : none;
  const Maybe ddt_bias = dt_bias ? Maybe(empty(a.shape(), stats, a.device())) : none;
  dispatch(x.device(), SsdBackwardArgs{.dt_softplus = o.dt_softplus,
                                       .log_a = detail::takes_log(x, o.log_a),
                                       .dt_min = o.dt_min,
                                       .dt_max = o.dt_max,
                                       .chunk = o.chunk,
                                       .dy = slope,
                                       .x = u,
                                       .dt = steps,
                                       .b = inputs,
                                       .c = outputs,
                                       .a = rates,
                                       .d = or_absent(skips),
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
  grads.da = detail::rates_gradient(da, rates, x, o.log_a).to(a.dtype());
  if (d) grads.dd = (d->dim() < dd->dim() ? dd->sum(-1) : *dd).to(d->dtype());
  if (dt_bias) grads.ddt_bias = ddt_bias->to(dt_bias->dtype());
  return grads;
}

SsdResult ssd(const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b, const Tensor& c,
              const SsdInputs& more, const SsdOptions& options) {
  return apply<Ssd>(x, dt, a, b, c, more.d, more.dt_bias, more.state, options);
}

}  // namespace norma
