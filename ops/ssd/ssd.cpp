#include "norma/ops/ssd/ssd.h"

#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/compare.h"
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
/// (H) or (H, P) as it multiplies (B, T, H, P).
Tensor skip(const Tensor& d, DType dtype) { return (d.dim() == 1 ? d.unsqueeze(1) : d).to(dtype); }

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

SsdResult Ssd::define(const Tensor& x_, const Tensor& dt, const Tensor& a_, const Tensor& b_,
                      const Tensor& c_, const Maybe& d, const Maybe& dt_bias, const Maybe& state,
                      const Options& o) {
  const DType dtype = stats_dtype(x_.dtype());
  const int64_t heads = x_.size(2);
  const Tensor x = x_.to(dtype), b = for_each_head(b_.to(dtype), heads),
               c = for_each_head(c_.to(dtype), heads);
  const Tensor delta = step_sizes(raw_steps(dt, dt_bias, dtype), o);
  const Tensor decay = exp(delta * a_.to(dtype)), input = delta.unsqueeze(3) * x;
  Tensor s = state ? *state : zeros({x.size(0), heads, x.size(3), b.size(3)}, dtype, x.device());
  std::vector<Tensor> steps;
  for (int64_t t = 0; t < x.size(1); ++t) {
    s = as_number(decay, t) * s + as_column(input, t) * as_row(b, t);
    steps.push_back((s * as_row(c, t)).sum(-1));
  }
  Tensor y = stack(steps, 1);
  if (d) y = y + skip(*d, dtype) * x;
  SsdResult result;
  result.y = y.to(x_.dtype());
  if (o.final_state) result.state = s;
  return result;
}

SsdResult ssd(const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b, const Tensor& c,
              const SsdInputs& more, const SsdOptions& options) {
  return apply<Ssd>(x, dt, a, b, c, more.d, more.dt_bias, more.state, options);
}

}  // namespace norma
