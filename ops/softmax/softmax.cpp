#include "norma/ops/softmax/softmax.h"

#include <limits>

#include "norma/core/dispatch.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/compare.h"
#include "norma/ops/elementwise/unary.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/softmax/kernels.h"

namespace norma {
namespace {

Tensor run_rows(SoftmaxFunction function, const Tensor& a, const Tensor& b, const Shape& shape) {
  const Tensor first = even_rows(a), second = b.defined() ? even_rows(b) : b;
  Tensor y = empty(shape, a.dtype(), a.device());
  dispatch(a.device(), SoftmaxArgs{.function = function, .a = first, .b = second, .y = y});
  return y;
}
Shape one_column(const Tensor& x) {
  Shape shape = x.shape();
  shape[shape.dim() - 1] = 1;
  return shape;
}
void require_rows(std::string_view name, const Tensor& x) {
  if (!is_floating(x.dtype()))
    throw DTypeError("{}: x must be floating, but is {}; convert it with .to(float32)", name,
                     to_string(x.dtype()));
}
/// f over the last dimension, applied to another one.
template <class F>
Tensor along(std::string_view name, const Tensor& x, int dim, const F& f) {
  const int d = wrap_dim(name, dim, x.dim()), last = x.dim() - 1;
  return d == last ? f(x) : f(x.transpose(d, last)).transpose(d, last);
}
/// The largest element, as a constant: it cancels in every formula here.
Tensor shift_of(const Tensor& x) {
  const Tensor m = x.detach().max(-1, keepdim);
  return where(equal(m, -std::numeric_limits<double>::infinity()), 0, m);
}

}  // namespace

Tensor Softmax::define(const Tensor& x) {
  const Tensor u = x.to(stats_dtype(x.dtype())), e = exp(u - shift_of(u));
  return (e / e.sum(-1, keepdim)).to(x.dtype());
}
Tensor Softmax::forward(Context& ctx, const Tensor& x) {
  require_rows(name, x);
  Tensor y = run_rows(SoftmaxFunction::softmax, x, Tensor(), x.shape());
  ctx.save(y);
  return y;
}
Tensor Softmax::backward(Context& ctx, const Tensor& dy) {
  return apply<SoftmaxBackward>(dy, ctx.saved(0));
}
Tensor SoftmaxBackward::define(const Tensor& dy_, const Tensor& y_) {
  const Tensor dy = dy_.to(stats_dtype(dy_.dtype())), y = y_.to(dy.dtype());
  return (y * (dy - (y * dy).sum(-1, keepdim))).to(dy_.dtype());
}
Tensor SoftmaxBackward::forward(Context&, const Tensor& dy, const Tensor& y) {
  return run_rows(SoftmaxFunction::softmax_backward, dy, y, dy.shape());
}

Tensor LogSoftmax::define(const Tensor& x) {
  const Tensor u = x.to(stats_dtype(x.dtype()));
  return (u - LogSumExp::define(u)).to(x.dtype());
}
Tensor LogSoftmax::forward(Context& ctx, const Tensor& x) {
  require_rows(name, x);
  Tensor y = run_rows(SoftmaxFunction::log_softmax, x, Tensor(), x.shape());
  ctx.save(y);
  return y;
}
Tensor LogSoftmax::backward(Context& ctx, const Tensor& dy) {
  return apply<LogSoftmaxBackward>(dy, ctx.saved(0));
}
Tensor LogSoftmaxBackward::define(const Tensor& dy_, const Tensor& y) {
  const Tensor dy = dy_.to(stats_dtype(dy_.dtype()));
  return (dy - exp(y.to(dy.dtype())) * dy.sum(-1, keepdim)).to(dy_.dtype());
}
Tensor LogSoftmaxBackward::forward(Context&, const Tensor& dy, const Tensor& y) {
  return run_rows(SoftmaxFunction::log_softmax_backward, dy, y, dy.shape());
}

Tensor LogSumExp::define(const Tensor& x) {
  const Tensor u = x.to(stats_dtype(x.dtype())), m = shift_of(u);
  return (log(exp(u - m).sum(-1, keepdim)) + m).to(x.dtype());
}
Tensor LogSumExp::forward(Context& ctx, const Tensor& x) {
  require_rows(name, x);
  Tensor y = run_rows(SoftmaxFunction::logsumexp, x, Tensor(), one_column(x));
  ctx.save(x);
  return y;
}
Tensor LogSumExp::backward(Context& ctx, const Tensor& dy) {
  return softmax(ctx.saved(0), -1) * dy;
}

Tensor softmax(const Tensor& x, int dim) {
  return along("softmax", x, dim, [](const Tensor& t) { return apply<Softmax>(t); });
}
Tensor log_softmax(const Tensor& x, int dim) {
  return along("log_softmax", x, dim, [](const Tensor& t) { return apply<LogSoftmax>(t); });
}
Tensor logsumexp(const Tensor& x, int dim, KeepDim keep) {
  const Tensor y = along("logsumexp", x, dim, [](const Tensor& t) { return apply<LogSumExp>(t); });
  return keep == keepdim ? y : y.squeeze(dim);
}

}  // namespace norma
