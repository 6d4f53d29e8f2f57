#include "norma/ops/elementwise/activation.h"

#include <numbers>

#include "norma/core/dispatch.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/compare.h"

namespace norma {
namespace {

constexpr double kInvSqrt2Pi = std::numbers::inv_sqrtpi / std::numbers::sqrt2;
constexpr double kSqrt2OverPi = std::numbers::sqrt2 * std::numbers::inv_sqrtpi;
constexpr double kGeluCubic = 0.044715;  // the paper's fit

Tensor normal_cdf(const Tensor& x) { return (erf(x * (1 / std::numbers::sqrt2)) + 1) * 0.5; }
Tensor gelu_tanh_argument(const Tensor& x) {
  return (x + square(x) * x * kGeluCubic) * kSqrt2OverPi;
}

}  // namespace

Tensor activation_backward(const Tensor& dy, const Tensor& saved, BinaryFunction function) {
  Tensor dx = empty_like(dy);
  dispatch(dy.device(), BinaryArgs{.function = function, .a = dy, .b = saved, .y = dx});
  return dx;
}

Tensor Tanh::backward(Context& ctx, const Tensor& dy) {
  return apply<TanhBackward>(dy, ctx.saved(0));
}
Tensor TanhBackward::define(const Tensor& dy, const Tensor& y) { return dy * (1 - square(y)); }

Tensor Sigmoid::define(const Tensor& x) { return reciprocal(exp(-x) + 1); }
Tensor Sigmoid::backward(Context& ctx, const Tensor& dy) {
  return apply<SigmoidBackward>(dy, ctx.saved(0));
}
Tensor SigmoidBackward::define(const Tensor& dy, const Tensor& y) { return dy * y * (1 - y); }

Tensor Relu::define(const Tensor& x) { return where(x <= 0, 0, x); }
Tensor Relu::backward(Context& ctx, const Tensor& dy) {
  return apply<ReluBackward>(dy, ctx.saved(0));
}
Tensor ReluBackward::define(const Tensor& dy, const Tensor& x) { return where(x <= 0, 0, dy); }

Tensor Softplus::define(const Tensor& x) { return maximum(x, 0) + log1p(exp(-abs(x))); }
Tensor Softplus::backward(Context& ctx, const Tensor& dy) { return dy * sigmoid(ctx.saved(0)); }

Tensor Silu::define(const Tensor& x) { return x * sigmoid(x); }
Tensor Silu::backward(Context& ctx, const Tensor& dy) {
  return apply<SiluBackward>(dy, ctx.saved(0));
}
Tensor SiluBackward::define(const Tensor& dy, const Tensor& x) {
  const Tensor s = sigmoid(x);
  return dy * (s * (x * (1 - s) + 1));
}

Tensor Gelu::define(const Tensor& x) { return x * normal_cdf(x); }
Tensor Gelu::backward(Context& ctx, const Tensor& dy) {
  return apply<GeluBackward>(dy, ctx.saved(0));
}
Tensor GeluBackward::define(const Tensor& dy, const Tensor& x) {
  return dy * (normal_cdf(x) + x * exp(square(x) * -0.5) * kInvSqrt2Pi);
}

Tensor GeluTanh::define(const Tensor& x) { return x * 0.5 * (tanh(gelu_tanh_argument(x)) + 1); }
Tensor GeluTanh::backward(Context& ctx, const Tensor& dy) {
  return apply<GeluTanhBackward>(dy, ctx.saved(0));
}
Tensor GeluTanhBackward::define(const Tensor& dy, const Tensor& x) {
  const Tensor t = tanh(gelu_tanh_argument(x));
  const Tensor slope = (square(x) * (3 * kGeluCubic) + 1) * kSqrt2OverPi;
  return dy * 0.5 * (t + 1 + x * (1 - square(t)) * slope);
}

Tensor tanh(const Tensor& x) { return apply<Tanh>(x); }
Tensor sigmoid(const Tensor& x) { return apply<Sigmoid>(x); }
Tensor relu(const Tensor& x) { return apply<Relu>(x); }
Tensor softplus(const Tensor& x) { return apply<Softplus>(x); }
Tensor silu(const Tensor& x) { return apply<Silu>(x); }
Tensor gelu(const Tensor& x) { return apply<Gelu>(x); }
Tensor gelu_tanh(const Tensor& x) { return apply<GeluTanh>(x); }
Tensor Tensor::tanh() const { return norma::tanh(*this); }

}  // namespace norma
