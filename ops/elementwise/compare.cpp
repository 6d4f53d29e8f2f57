#include "norma/ops/elementwise/compare.h"

#include "norma/core/dispatch.h"
#include "norma/ops/view/view.h"

namespace norma {
namespace {

Tensor compare(const Operand& a, const Operand& b, Comparison comparison) {
  return apply<Compare>(a.like(b), b.like(a), {.comparison = comparison});
}

}  // namespace

TensorSpec Compare::check(const Tensor& a, const Tensor& b, const Options&) {
  if (a.dtype() != b.dtype())
    throw DTypeError(
        "{}: a and b must have one dtype, but are {} and {}; convert one with .to(dtype)", name,
        to_string(a.dtype()), to_string(b.dtype()));
  return {broadcast_shapes(name, a.shape(), b.shape()), bool_, a.device()};
}
Tensor Compare::forward(Context& ctx, const Tensor& a, const Tensor& b, const Options& o) {
  Tensor y = empty(ctx.output());
  dispatch(y.device(), CompareArgs{.comparison = o.comparison,
                                   .a = detail::expanded(a, y.shape()),
                                   .b = detail::expanded(b, y.shape()),
                                   .y = y});
  return y;
}

TensorSpec Where::check(const Tensor& condition, const Tensor& a, const Tensor& b) {
  if (condition.dtype() != bool_)
    throw DTypeError("{}: condition must be bool, but is {}", name, to_string(condition.dtype()));
  if (a.dtype() != b.dtype())
    throw DTypeError(
        "{}: a and b must have one dtype, but are {} and {}; convert one with .to(dtype)", name,
        to_string(a.dtype()), to_string(b.dtype()));
  const Shape values = broadcast_shapes(name, a.shape(), b.shape());
  return {broadcast_shapes(name, condition.shape(), values), a.dtype(), a.device()};
}
Tensor Where::forward(Context& ctx, const Tensor& condition, const Tensor& a, const Tensor& b) {
  Tensor y = empty(ctx.output());
  dispatch(y.device(), WhereArgs{.condition = detail::expanded(condition, y.shape()),
                                 .a = detail::expanded(a, y.shape()),
                                 .b = detail::expanded(b, y.shape()),
                                 .y = y});
  ctx.save(condition);
  return y;
}
WhereGrads Where::backward(Context& ctx, const Tensor& dy) {
  const Tensor condition = ctx.saved(0);
  WhereGrads grads;
  if (ctx.needs(1)) grads.da = sum_to(where(condition, dy, 0), ctx.input(1).shape);
  if (ctx.needs(2)) grads.db = sum_to(where(condition, 0, dy), ctx.input(2).shape);
  return grads;
}

Tensor equal(const Operand& a, const Operand& b) { return compare(a, b, Comparison::equal); }
Tensor not_equal(const Operand& a, const Operand& b) {
  return compare(a, b, Comparison::not_equal);
}
Tensor less(const Operand& a, const Operand& b) { return compare(a, b, Comparison::less); }
Tensor less_equal(const Operand& a, const Operand& b) {
  return compare(a, b, Comparison::less_equal);
}
Tensor greater(const Operand& a, const Operand& b) { return compare(a, b, Comparison::greater); }
Tensor greater_equal(const Operand& a, const Operand& b) {
  return compare(a, b, Comparison::greater_equal);
}
Tensor where(const Tensor& condition, const Operand& a, const Operand& b) {
  return apply<Where>(condition, a.like(b), b.like(a));
}

}  // namespace norma
