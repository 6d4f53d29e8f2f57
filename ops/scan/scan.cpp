#include "norma/ops/scan/scan.h"

#include <algorithm>

#include "norma/core/dispatch.h"
#include "norma/core/gradient_memory.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/unary.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/scan/kernels.h"
#include "norma/ops/scan/rates.h"
#include "norma/ops/view/view.h"

namespace norma {
namespace {

using Maybe = std::optional<Tensor>;

void require_shape(std::string_view what, std::string_view dims, const Maybe& t,
                   const Shape& wanted) {
  if (t && t->shape() != wanted)
    throw ShapeError("{}: {} must be {} = {}, but is {}", SelectiveScan::name, what, dims, wanted,
                     t->shape());
}
void require_dtype(std::string_view what, const Maybe& t, DType wanted) {
  if (t && t->dtype() != wanted)
    throw DTypeError("{}: {} must be {}, but is {}", SelectiveScan::name, what, to_string(wanted),
                     to_string(t->dtype()));
}
void require_floating(std::string_view what, const Maybe& t) {
  if (t && !is_floating(t->dtype()))
    throw DTypeError("{}: {} must be floating, but is {}", SelectiveScan::name, what,
                     to_string(t->dtype()));
}

/// dt + dt_bias
Tensor raw_steps(const Tensor& dt, const Maybe& dt_bias, DType dtype) {
  return dt_bias ? dt.to(dtype) + dt_bias->to(dtype) : dt.to(dtype);
}
/// The arguments of definition and closed form in the state's dtype.
struct Formula {
  DType dtype;
  Tensor x, a, b, c, raw, delta, input;
  Tensor first;  // the state before step 0

  Formula(const Tensor& x_, const Tensor& dt, const Tensor& a_, const Tensor& b_, const Tensor& c_,
          const Maybe& dt_bias, const Maybe& state, const ScanOptions& o)
      : dtype(stats_dtype(x_.dtype())),
        x(x_.to(dtype)),
        a(detail::rates_of(a_, dtype, o.log_a)),
        b(b_.to(dtype)),
        c(c_.to(dtype)),
        raw(raw_steps(dt, dt_bias, dtype)),
        delta(o.dt_softplus ? softplus(raw) : raw),
        input(delta * x),
        first(state ? *state : zeros({x.size(0), x.size(2), a.size(1)}, dtype, x.device())) {}
};
/// Step t of (B, T, n) as (B, n, 1) or (B, 1, n).
Tensor as_column(const Tensor& t, int64_t step) { return t.select(1, step).unsqueeze(2); }
Tensor as_row(const Tensor& t, int64_t step) { return t.select(1, step).unsqueeze(1); }

/// Steps between kept states: N numbers a channel each, on the processor half a number a step from
/// N = 32 on. On a GPU it is the tile of the kernels.
int64_t chunk_of(const Tensor& x, const Tensor& a, const ScanOptions& o) {
  if (x.device().is_cuda()) return 32;
  const int64_t chunk = o.chunk > 0 ? o.chunk : std::max<int64_t>(64, 2 * a.size(1));
  return std::min(chunk, x.size(1));
}
Tensor or_absent(const Maybe& t) { return t.value_or(Tensor()); }
struct ScanGrads {
  Tensor dx, ddt, da, db, dc;
  Maybe dd, dz, ddt_bias, dstate;

  std::vector<Tensor> flat() const {
    return {
        dx, ddt, da, db, dc, or_absent(dd), or_absent(dz), or_absent(ddt_bias), or_absent(dstate)};
  }
};
/// t, or a dense copy where its last dimension is not.
Tensor ready(const Tensor& t) { return t.strides()[2] == 1 ? t : detail::dense(t); }
Maybe ready(const Maybe& t) { return t ? Maybe(ready(*t)) : none; }
Tensor dense_stats(const Tensor& t, DType stats) { return detail::dense(t.to(stats)); }
Maybe dense_stats(const Maybe& t, DType stats) { return t ? Maybe(dense_stats(*t, stats)) : none; }

}  // namespace

void SelectiveScan::check(const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b,
                          const Tensor& c, const Maybe& d, const Maybe& z, const Maybe& dt_bias,
                          const Maybe& state, const Options& o) {
  if (x.dim() != 3 || x.size(1) < 1)
    throw ShapeError("{}: x must be (B, T, E) with T of 1 or more, but is {}", name, x.shape());
  const int64_t batch = x.size(0), length = x.size(1), channels = x.size(2);
  if (a.dim() != 2 || a.size(0) != channels || a.size(1) < 1 || a.size(1) > kMaxScanState)
    throw ShapeError(
        "{}: a must be (E, N) with the {} channels of x {} and N from 1 to {}, but is {}", name,
        channels, x.shape(), kMaxScanState, a.shape());
  const Shape rows{batch, length, a.size(1)};
  require_shape("dt", "(B, T, E)", dt, x.shape());
  require_shape("b", "(B, T, N)", b, rows);
  require_shape("c", "(B, T, N)", c, rows);
  require_shape("d", "(E)", d, {channels});
  require_shape("z", "(B, T, E)", z, x.shape());
  require_shape("dt_bias", "(E)", dt_bias, {channels});
  require_shape("state", "(B, E, N)", state, {batch, channels, a.size(1)});
  require_floating("x", x);
  require_dtype("dt", dt, x.dtype());
  require_dtype("b", b, x.dtype());
  require_dtype("c", c, x.dtype());
  require_dtype("z", z, x.dtype());
  require_floating("a", a);
  require_floating("d", d);
  require_floating("dt_bias", dt_bias);
  require_dtype("state", state, stats_dtype(x.dtype()));
  if (o.chunk < 0) throw ValueError("{}: chunk must be 0 or more, but is {}", name, o.chunk);
}

ScanResult SelectiveScan::define(const Tensor& x, const Tensor& dt, const Tensor& a,
                                 const Tensor& b, const Tensor& c, const Maybe& d, const Maybe& z,
                                 const Maybe& dt_bias, const Maybe& state, const Options& o) {
  const Formula f(x, dt, a, b, c, dt_bias, state, o);
  Tensor h = f.first;
  std::vector<Tensor> steps;
  for (int64_t t = 0; t < x.size(1); ++t) {
    h = exp(as_column(f.delta, t) * f.a) * h + as_column(f.input, t) * as_row(f.b, t);
    steps.push_back((h * as_row(f.c, t)).sum(-1));
  }
  Tensor y = stack(steps, 1);
  if (d) y = y + d->to(f.dtype) * f.x;
  if (z) y = y * silu(z->to(f.dtype));
  ScanResult result;
  result.y = y.to(x.dtype());
  if (o.final_state) result.state = h;
  return result;
}

ScanResult SelectiveScan::forward(Context& ctx, const Tensor& x, const Tensor& dt, const Tensor& a,
                                  const Tensor& b, const Tensor& c, const Maybe& d, const Maybe& z,
                                  const Maybe& dt_bias, const Maybe& state, const Options& o) {
  const DType stats = stats_dtype(x.dtype());
  const int64_t batch = x.size(0), channels = x.size(2), n = a.size(1), chunk = chunk_of(x, a, o);
  const Tensor u = ready(x), steps = ready(dt), inputs = ready(b), outputs = ready(c);
  const Tensor rates = detail::kernel_rates(a, x, stats, o.log_a);
  const Maybe gate = ready(z), skip = dense_stats(d, stats), bias = dense_stats(dt_bias, stats),
              first = dense_stats(state, stats);
  ScanResult result;
  result.y = empty(x.spec());
  if (o.final_state) result.state = empty({batch, channels, n}, stats, x.device());
  Tensor chunk_states;
  if (ctx.recording())
    chunk_states = empty({batch, (x.size(1) + chunk - 1) / chunk, n, channels}, stats, x.device());
  dispatch(x.device(), ScanForwardArgs{.dt_softplus = o.dt_softplus,
                                       .log_a = detail::takes_log(x, o.log_a),
                                       .chunk = chunk,
                                       .x = u,
                                       .dt = steps,
                                       .a = rates,
                                       .b = inputs,
                                       .c = outputs,
                                       .z = or_absent(gate),
                                       .d = or_absent(skip),
                                       .dt_bias = or_absent(bias),
                                       .state = or_absent(first),
                                       .y = result.y,
                                       .last_state = or_absent(result.state),
                                       .chunk_states = chunk_states});
  ctx.save(x, dt, a, b, c, d, z, dt_bias, state);
  ctx.save_constant(chunk_states);
  return result;
}
std::vector<Tensor> SelectiveScan::backward(Context& ctx, const Maybe& dy,
                                            const Maybe& dlast_state) {
  const Tensor x = ctx.saved(0);
  return apply<SelectiveScanBackward>(
      dy ? *dy : zeros_like(x), dlast_state, x, ctx.saved(1), ctx.saved(2), ctx.saved(3),
      ctx.saved(4), ctx.saved_optional(5), ctx.saved_optional(6), ctx.saved_optional(7),
      ctx.saved_optional(8), ctx.saved(9), ctx.options());
}

std::vector<Tensor> SelectiveScanBackward::define(const Tensor& dy_, const Maybe& dlast_state,
                                                  const Tensor& x, const Tensor& dt,
                                                  const Tensor& a, const Tensor& b, const Tensor& c,
                                                  const Maybe& d, const Maybe& z,
                                                  const Maybe& dt_bias, const Maybe& state,
                                                  const Tensor&, const Options& o) {
  const Formula f(x, dt, a, b, c, dt_bias, state, o);
  std::vector<Tensor> h{f.first}, fade, outputs;
  for (int64_t t = 0; t < x.size(1); ++t) {
    fade.push_back(exp(as_column(f.delta, t) * f.a));
    h.push_back(fade.back() * h.back() + as_column(f.input, t) * as_row(f.b, t));
    if (z) outputs.push_back((h.back() * as_row(f.c, t)).sum(-1));
  }
  ScanGrads grads;
  Tensor dy = dy_.to(f.dtype);
  if (z) {
    const Tensor gate = z->to(f.dtype), s = sigmoid(gate);
    Tensor y = stack(outputs, 1);
    if (d) y = y + d->to(f.dtype) * f.x;
    grads.dz = (dy * y * (s * (gate * (1 - s) + 1))).to(z->dtype());
    dy = dy * (gate * s);
  }
  Tensor g = dlast_state ? *dlast_state : zeros_like(f.first), da = zeros_like(f.a);
  const size_t length = fade.size();
  std::vector<Tensor> db(length), dc(length), dinput(length), fading(length);
  for (size_t i = length; i-- > 0;) {
    const auto t = static_cast<int64_t>(i);
    g = g + as_column(dy, t) * as_row(f.c, t);
    dc[i] = (h[i + 1] * as_column(dy, t)).sum(1);
    db[i] = (g * as_column(f.input, t)).sum(1);
    dinput[i] = (g * as_row(f.b, t)).sum(-1);
    g = g * fade[i];
    const Tensor p = g * h[i];
    fading[i] = (p * f.a).sum(-1);
    da = da + (p * as_column(f.delta, t)).sum(0);
  }
  Tensor dx = stack(dinput, 1) * f.delta;
  if (d) {
    dx = dx + dy * d->to(f.dtype);
    grads.dd = sum(dy * f.x, {0, 1}).to(d->dtype());
  }
  Tensor ddelta = stack(dinput, 1) * f.x + stack(fading, 1);
  if (o.dt_softplus) ddelta = ddelta * sigmoid(f.raw);
  if (dt_bias) grads.ddt_bias = sum(ddelta, {0, 1}).to(dt_bias->dtype());
  if (state) grads.dstate = g;
  if (o.log_a) da = da * f.a;
  grads.dx = dx.to(x.dtype()), grads.ddt = ddelta.to(dt.dtype()), grads.da = da.to(a.dtype());
  grads.db = stack(db, 1).to(b.dtype()), grads.dc = stack(dc, 1).to(c.dtype());
  return grads.flat();
}

std::vector<Tensor> SelectiveScanBackward::forward(
    Context&, const Tensor& dy, const Maybe& dlast_state, const Tensor& x, const Tensor& dt,
    const Tensor& a, const Tensor& b, const Tensor& c, const Maybe& d, const Maybe& z,
    const Maybe& dt_bias, const Maybe& state, const Tensor& chunk_states, const Options& o) {
  const DType stats = stats_dtype(x.dtype());
  const Tensor slope = ready(dy), u = ready(x), steps = ready(dt), inputs = ready(b),
               outputs = ready(c), rates = detail::kernel_rates(a, x, stats, o.log_a);
  const Maybe gate = ready(z), skip = dense_stats(d, stats), bias = dense_stats(dt_bias, stats),
              dlast = dense_stats(dlast_state, stats);
  const auto in_stats = [&](const Maybe& t) {
    return t ? Maybe(empty(t->shape(), stats, t->device())) : none;
  };
  ScanGrads grads;
  grads.dx = detail::empty_gradient(x), grads.ddt = detail::empty_gradient(dt);
  if (x.device().is_cuda())
    grads.db = detail::empty_gradient(b), grads.dc = detail::empty_gradient(c);
  else
    grads.db = empty(b.spec()), grads.dc = empty(c.spec());
  if (z) grads.dz = detail::empty_gradient(*z);
  grads.dstate = in_stats(state);
  const Maybe da = in_stats(a), dd = in_stats(d), ddt_bias = in_stats(dt_bias);
  dispatch(x.device(), ScanBackwardArgs{.dt_softplus = o.dt_softplus,
                                        .log_a = detail::takes_log(x, o.log_a),
                                        .chunk = chunk_of(x, a, o),
                                        .dy = slope,
                                        .x = u,
                                        .dt = steps,
                                        .a = rates,
                                        .b = inputs,
                                        .c = outputs,
                                        .z = or_absent(gate),
                                        .d = or_absent(skip),
                                        .dt_bias = or_absent(bias),
                                        .chunk_states = chunk_states,
                                        .dlast_state = or_absent(dlast),
                                        .dx = grads.dx,
                                        .ddt = grads.ddt,
                                        .db = grads.db,
                                        .dc = grads.dc,
                                        .dz = or_absent(grads.dz),
                                        .da = *da,
                                        .dd = or_absent(dd),
                                        .ddt_bias = or_absent(ddt_bias),
                                        .dstate = or_absent(grads.dstate)});
  grads.da = detail::rates_gradient(*da, rates, x, o.log_a).to(a.dtype());
  if (d) grads.dd = dd->to(d->dtype());
  if (dt_bias) grads.ddt_bias = ddt_bias->to(dt_bias->dtype());
  return grads.flat();
}

ScanResult selective_scan(const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b,
                          const Tensor& c, const ScanInputs& more, const ScanOptions& options) {
  return apply<SelectiveScan>(x, dt, a, b, c, more.d, more.z, more.dt_bias, more.state, options);
}

}  // namespace norma
