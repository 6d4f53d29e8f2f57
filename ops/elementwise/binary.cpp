#include "norma/ops/elementwise/binary.h"

#include "norma/core/dispatch.h"
#include "norma/ops/elementwise/compare.h"
#include "norma/ops/elementwise/unary.h"
#include "norma/ops/view/view.h"

namespace norma {
namespace {

/// Both gradients where they are wanted, summed over what was broadcast.
template <class F, class G>
BinaryGrads gradients(const Context& ctx, const F& da, const G& db) {
  BinaryGrads grads;
  if (ctx.needs(0)) grads.da = sum_to(da(), ctx.input(0).shape);
  if (ctx.needs(1)) grads.db = sum_to(db(), ctx.input(1).shape);
  return grads;
}

/// For minimum and maximum: dy where `a` was chosen, half of it where both were.
BinaryGrads chosen(const Context& ctx, const Tensor& dy,
                   Tensor (*beats)(const Operand&, const Operand&)) {
  const Tensor a = ctx.saved(0), b = ctx.saved(1);
  const Tensor shared = where(equal(a, b), dy * 0.5, 0);
  return gradients(
      ctx, [&] { return where(beats(a, b), dy, shared); },
      [&] { return where(beats(b, a), dy, shared); });
}

}  // namespace

Tensor Operand::like(const Operand& other) const {
  if (tensor_) return *tensor_;
  if (!other.tensor_) throw ValueError("arithmetic: one operand must be a tensor");
  return scalar(number_, other.tensor_->dtype(), other.tensor_->device());
}

TensorSpec check_binary(std::string_view name, const Tensor& a, const Tensor& b, bool floating) {
  if (a.dtype() != b.dtype())
    throw DTypeError(
        "{}: a and b must have one dtype, but are {} and {}; convert one with .to(dtype)", name,
        to_string(a.dtype()), to_string(b.dtype()));
  if (floating ? !is_floating(a.dtype()) : a.dtype() == bool_)
    throw DTypeError("{}: a and b must be {}, but are {}; convert them with .to(float32)", name,
                     floating ? "floating" : "numbers", to_string(a.dtype()));
  if (a.shape() == b.shape()) return a.spec();
  return {broadcast_shapes(name, a.shape(), b.shape()), a.dtype(), a.device()};
}

Tensor binary_forward(Context& ctx, const Tensor& a, const Tensor& b, BinaryFunction function) {
  Tensor y = empty(ctx.output());
  dispatch(y.device(), BinaryArgs{.function = function,
                                  .a = detail::expanded(a, y.shape()),
                                  .b = detail::expanded(b, y.shape()),
                                  .y = y});
  return y;
}

BinaryGrads Add::backward(Context& ctx, const Tensor& dy) {
  return gradients(
      ctx, [&] { return dy; }, [&] { return dy; });
}
BinaryGrads Sub::backward(Context& ctx, const Tensor& dy) {
  return gradients(
      ctx, [&] { return dy; }, [&] { return -dy; });
}
BinaryGrads Mul::backward(Context& ctx, const Tensor& dy) {
  return gradients(
      ctx, [&] { return dy * ctx.saved(1); }, [&] { return dy * ctx.saved(0); });
}
BinaryGrads Div::backward(Context& ctx, const Tensor& dy) {
  return gradients(
      ctx, [&] { return dy / ctx.saved(1); },
      [&] {
        const Tensor b = ctx.saved(1);
        return -dy * (ctx.saved(0) / b) / b;
      });
}
BinaryGrads Pow::backward(Context& ctx, const Tensor& dy) {
  const Tensor a = ctx.saved(0), b = ctx.saved(1);
  return gradients(
      ctx, [&] { return dy * where(equal(b, 0), 0, b * pow(a, b - 1)); },
      [&] {
        const Tensor zero = greater_equal(where(equal(a, 0), b, -1), 0);
        return dy * where(zero, 0, pow(a, b) * log(where(zero, 1, a)));
      });
}
BinaryGrads Minimum::backward(Context& ctx, const Tensor& dy) { return chosen(ctx, dy, less); }
BinaryGrads Maximum::backward(Context& ctx, const Tensor& dy) { return chosen(ctx, dy, greater); }

Tensor add(const Operand& a, const Operand& b) { return apply<Add>(a.like(b), b.like(a)); }
Tensor sub(const Operand& a, const Operand& b) { return apply<Sub>(a.like(b), b.like(a)); }
Tensor mul(const Operand& a, const Operand& b) { return apply<Mul>(a.like(b), b.like(a)); }
Tensor div(const Operand& a, const Operand& b) { return apply<Div>(a.like(b), b.like(a)); }
Tensor pow(const Operand& a, const Operand& b) { return apply<Pow>(a.like(b), b.like(a)); }
Tensor minimum(const Operand& a, const Operand& b) { return apply<Minimum>(a.like(b), b.like(a)); }
Tensor maximum(const Operand& a, const Operand& b) { return apply<Maximum>(a.like(b), b.like(a)); }
Tensor operator-(const Tensor& x) { return neg(x); }

}  // namespace norma
