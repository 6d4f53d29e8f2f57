#include "norma/ops/elementwise/unary.h"

#include <numbers>

#include "norma/core/dispatch.h"
#include "norma/ops/elementwise/binary.h"

namespace norma {

Tensor unary_forward(Context& ctx, const Tensor& x, UnaryFunction function, Saves saves,
                     Takes takes) {
  const bool fits = is_floating(x.dtype()) || (takes == Takes::numbers && x.dtype() != bool_);
  if (!fits)
    throw DTypeError("{}: x must be {}, but is {}; convert it with .to(float32)", ctx.name(),
                     takes == Takes::floating ? "floating" : "a number", to_string(x.dtype()));
  Tensor y = empty_like(x);
  dispatch(x.device(), UnaryArgs{.function = function, .x = x, .y = y});
  if (saves == Saves::x) ctx.save(x);
  if (saves == Saves::y) ctx.save(y);
  return y;
}

Tensor Neg::backward(Context&, const Tensor& dy) { return -dy; }
Tensor Abs::backward(Context& ctx, const Tensor& dy) { return dy * sign(ctx.saved(0)); }
Tensor Sign::backward(Context&, const Tensor& dy) { return zeros_like(dy); }
Tensor Square::backward(Context& ctx, const Tensor& dy) { return dy * ctx.saved(0) * 2; }
Tensor Reciprocal::backward(Context& ctx, const Tensor& dy) { return -dy * square(ctx.saved(0)); }
Tensor Sqrt::backward(Context& ctx, const Tensor& dy) { return dy * 0.5 / ctx.saved(0); }
Tensor Rsqrt::backward(Context& ctx, const Tensor& dy) {
  const Tensor y = ctx.saved(0);
  return dy * -0.5 * (square(y) * y);
}
Tensor Exp::backward(Context& ctx, const Tensor& dy) { return dy * ctx.saved(0); }
Tensor Expm1::backward(Context& ctx, const Tensor& dy) { return dy * (ctx.saved(0) + 1); }
Tensor NegExp::backward(Context& ctx, const Tensor& dy) { return dy * ctx.saved(0); }
Tensor Log::backward(Context& ctx, const Tensor& dy) { return dy / ctx.saved(0); }
Tensor Log1p::backward(Context& ctx, const Tensor& dy) { return dy / (ctx.saved(0) + 1); }
Tensor Sin::backward(Context& ctx, const Tensor& dy) { return dy * cos(ctx.saved(0)); }
Tensor Cos::backward(Context& ctx, const Tensor& dy) { return -dy * sin(ctx.saved(0)); }
Tensor Erf::backward(Context& ctx, const Tensor& dy) {
  return dy * exp(-square(ctx.saved(0))) * (2 * std::numbers::inv_sqrtpi);
}

Tensor neg(const Tensor& x) { return apply<Neg>(x); }
Tensor abs(const Tensor& x) { return apply<Abs>(x); }
Tensor sign(const Tensor& x) { return apply<Sign>(x); }
Tensor square(const Tensor& x) { return apply<Square>(x); }
Tensor reciprocal(const Tensor& x) { return apply<Reciprocal>(x); }
Tensor sqrt(const Tensor& x) { return apply<Sqrt>(x); }
Tensor rsqrt(const Tensor& x) { return apply<Rsqrt>(x); }
Tensor exp(const Tensor& x) { return apply<Exp>(x); }
Tensor expm1(const Tensor& x) { return apply<Expm1>(x); }
Tensor neg_exp(const Tensor& x) { return apply<NegExp>(x); }
Tensor log(const Tensor& x) { return apply<Log>(x); }
Tensor log1p(const Tensor& x) { return apply<Log1p>(x); }
Tensor sin(const Tensor& x) { return apply<Sin>(x); }
Tensor cos(const Tensor& x) { return apply<Cos>(x); }
Tensor erf(const Tensor& x) { return apply<Erf>(x); }
Tensor clamp(const Tensor& x, double low, double high) {
  if (!(low <= high))
    throw ValueError("clamp: low must not exceed high, but they are {} and {}", low, high);
  return minimum(maximum(x, low), high);
}

Tensor Tensor::square() const { return norma::square(*this); }
Tensor Tensor::exp() const { return norma::exp(*this); }
Tensor Tensor::log() const { return norma::log(*this); }
Tensor Tensor::sqrt() const { return norma::sqrt(*this); }
Tensor Tensor::rsqrt() const { return norma::rsqrt(*this); }
Tensor Tensor::abs() const { return norma::abs(*this); }

}  // namespace norma
