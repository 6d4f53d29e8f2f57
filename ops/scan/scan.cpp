#include "norma/ops/scan/scan.h"

#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
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

/// Δ in `dtype`.
Tensor step_sizes(const Tensor& dt, const Maybe& dt_bias, const ScanOptions& o, DType dtype) {
  const Tensor raw = dt_bias ? dt.to(dtype) + dt_bias->to(dtype) : dt.to(dtype);
  return o.dt_softplus ? softplus(raw) : raw;
}
/// Step t of (B, T, n) as (B, n, 1) or (B, 1, n).
Tensor as_column(const Tensor& t, int64_t step) { return t.select(1, step).unsqueeze(2); }
Tensor as_row(const Tensor& t, int64_t step) { return t.select(1, step).unsqueeze(1); }

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

ScanResult SelectiveScan::define(const Tensor& x_, const Tensor& dt, const Tensor& a_,
                                 const Tensor& b_, const Tensor& c_, const Maybe& d, const Maybe& z,
                                 const Maybe& dt_bias, const Maybe& state, const Options& o) {
  const DType dtype = stats_dtype(x_.dtype());
  const Tensor x = x_.to(dtype), a = a_.to(dtype), b = b_.to(dtype), c = c_.to(dtype);
  const Tensor delta = step_sizes(dt, dt_bias, o, dtype), input = delta * x;
  Tensor h = state ? *state : zeros({x.size(0), x.size(2), a.size(1)}, dtype, x.device());
  std::vector<Tensor> steps;
  for (int64_t t = 0; t < x.size(1); ++t) {
    h = exp(as_column(delta, t) * a) * h + as_column(input, t) * as_row(b, t);
    steps.push_back((h * as_row(c, t)).sum(-1));
  }
  Tensor y = stack(steps, 1);
  if (d) y = y + d->to(dtype) * x;
  if (z) y = y * silu(z->to(dtype));
  ScanResult result;
  result.y = y.to(x_.dtype());
  if (o.final_state) result.state = h;
  return result;
}

ScanResult selective_scan(const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b,
                          const Tensor& c, const ScanInputs& more, const ScanOptions& options) {
  return apply<SelectiveScan>(x, dt, a, b, c, more.d, more.z, more.dt_bias, more.state, options);
}

}  // namespace norma
