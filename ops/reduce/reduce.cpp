#include "norma/ops/reduce/reduce.h"

#include "norma/core/dispatch.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/compare.h"
#include "norma/ops/elementwise/unary.h"
#include "norma/ops/reduce/kernels.h"

namespace norma {
namespace {

ReduceOptions reduce_options(std::string_view name, const Tensor& x, const std::vector<int>& dims,
                             KeepDim keep) {
  ReduceOptions options{.keep = keep};
  for (int dim : dims) {
    const int d = wrap_dim(name, dim, x.dim());
    for (int64_t other : options.dims)
      if (other == d)
        throw ShapeError("{}: a dimension may come once, but {} came twice", name, dim);
    options.dims.push_back(d);
  }
  return options;
}
std::vector<int> all_dims(const Tensor& x) {
  std::vector<int> dims;
  for (int i = 0; i < x.dim(); ++i) dims.push_back(i);
  return dims;
}

bool is_reduced(const ReduceOptions& o, int dim) {
  for (int64_t d : o.dims)
    if (d == dim) return true;
  return false;
}
Shape reduced_shape(const Shape& shape, const ReduceOptions& o) {
  Shape reduced;
  for (int i = 0; i < shape.dim(); ++i) {
    if (!is_reduced(o, i))
      reduced.push_back(shape[i]);
    else if (o.keep == keepdim)
      reduced.push_back(1);
  }
  return reduced;
}
int64_t reduced_count(const Shape& shape, const ReduceOptions& o) {
  int64_t n = 1;
  for (int64_t d : o.dims) n *= shape[static_cast<int>(d)];
  return n;
}
void append_dim(ConstView& view, const Tensor& x, int dim) {
  view.shape.push_back(x.shape()[dim]);
  view.strides.push_back(x.strides()[dim]);
}

Tensor reduce(const Tensor& x, const ReduceOptions& o, Reduction reduction, DType dtype,
              double divisor) {
  ConstView ordered = x;
  ordered.shape = {}, ordered.strides = {};
  for (int i = 0; i < x.dim(); ++i)
    if (!is_reduced(o, i)) append_dim(ordered, x, i);
  const int kept = ordered.shape.dim();
  for (int64_t d : o.dims) append_dim(ordered, x, static_cast<int>(d));
  Tensor y = empty(reduced_shape(x.shape(), o), dtype, x.device());
  dispatch(
      x.device(),
      ReduceArgs{.reduction = reduction, .x = ordered, .kept = kept, .divisor = divisor, .y = y});
  return y;
}

/// A reduced tensor seen at the shape that it was reduced from.
Tensor spread(const Tensor& y, const Shape& shape, const ReduceOptions& o) {
  return y.reshape(reduced_shape(shape, {.dims = o.dims, .keep = keepdim})).expand(shape);
}
void require_floating(std::string_view name, const Tensor& x) {
  if (!is_floating(x.dtype()))
    throw DTypeError("{}: x must be floating, but is {}; convert it with .to(float32)", name,
                     to_string(x.dtype()));
}
/// x with dimension `dim` moved to the end.
ConstView with_last(const Tensor& x, int dim) {
  ConstView view = x;
  view.shape.erase(dim), view.strides.erase(dim);
  append_dim(view, x, dim);
  return view;
}

}  // namespace

Tensor Sum::forward(Context&, const Tensor& x, const Options& o) {
  const DType dtype = is_floating(x.dtype()) ? x.dtype() : int64;
  return reduce(x, o, Reduction::sum, dtype, 1);
}
Tensor Sum::backward(Context& ctx, const Tensor& dy) {
  return spread(dy, ctx.input(0).shape, ctx.options());
}

Tensor Mean::define(const Tensor& x, const Options& o) {
  return apply<Sum>(x, o) / static_cast<double>(reduced_count(x.shape(), o));
}
Tensor Mean::forward(Context&, const Tensor& x, const Options& o) {
  require_floating(name, x);
  return reduce(x, o, Reduction::sum, x.dtype(), static_cast<double>(reduced_count(x.shape(), o)));
}
Tensor Mean::backward(Context& ctx, const Tensor& dy) {
  const Options& o = ctx.options();
  const Shape shape = ctx.input(0).shape;
  return spread(dy / static_cast<double>(reduced_count(shape, o)), shape, o);
}

Tensor Max::forward(Context& ctx, const Tensor& x, const Options& o) {
  if (reduced_count(x.shape(), o) == 0)
    throw ValueError("{}: at least one element is needed, but x is {}", name, x.shape());
  Tensor y = reduce(x, o, Reduction::max, x.dtype(), 1);
  ctx.save(x, y);
  return y;
}
Tensor Max::backward(Context& ctx, const Tensor& dy) {
  const Options& o = ctx.options();
  const Tensor x = ctx.saved(0);
  const Tensor largest = equal(x, spread(ctx.saved(1), x.shape(), o)).to(x.dtype());
  const Tensor count = apply<Sum>(largest, {.dims = o.dims, .keep = keepdim});
  return spread(dy, x.shape(), o) * (largest / count);
}

Tensor EuclideanNorm::forward(Context& ctx, const Tensor& x) {
  require_floating(name, x);
  const Tensor squares = x.to(stats_dtype(x.dtype())).square();
  Tensor y = squares.sum().sqrt().to(x.dtype());
  ctx.save(x, y);
  return y;
}
Tensor EuclideanNorm::backward(Context& ctx, const Tensor& dy) {
  const Tensor y = ctx.saved(1);
  return dy * where(equal(y, 0), 0, ctx.saved(0) / where(equal(y, 0), 1, y));
}

Tensor Cumsum::forward(Context&, const Tensor& x, const Options& o) {
  if (!is_floating(x.dtype()) && x.dtype() != int64)
    throw DTypeError("{}: x must be floating or int64, but is {}; convert it with .to(int64)", name,
                     to_string(x.dtype()));
  Tensor y = empty_like(x);
  const ConstView target = with_last(y, o.dim);
  View out = y;
  out.shape = target.shape, out.strides = target.strides;
  dispatch(x.device(), CumsumArgs{.x = with_last(x, o.dim), .y = out, .reverse = o.reverse});
  return y;
}
Tensor Cumsum::backward(Context& ctx, const Tensor& dy) {
  const Options& o = ctx.options();
  return apply<Cumsum>(dy, {.dim = o.dim, .reverse = !o.reverse});
}

Tensor sum(const Tensor& x, const std::vector<int>& dims, KeepDim keep) {
  return apply<Sum>(x, reduce_options("sum", x, dims, keep));
}
Tensor mean(const Tensor& x, const std::vector<int>& dims, KeepDim keep) {
  return apply<Mean>(x, reduce_options("mean", x, dims, keep));
}
Tensor max(const Tensor& x, const std::vector<int>& dims, KeepDim keep) {
  return apply<Max>(x, reduce_options("max", x, dims, keep));
}
Tensor var(const Tensor& x, const std::vector<int>& dims, KeepDim keep) {
  return mean(square(x - mean(x, dims, keepdim)), dims, keep);
}
Tensor norm(const Tensor& x) { return apply<EuclideanNorm>(x); }
Tensor argmax(const Tensor& x, int dim) {
  const int d = wrap_dim("argmax", dim, x.dim());
  if (x.shape()[d] == 0)
    throw ValueError("argmax: at least one element is needed, but x is {}", x.shape());
  Shape shape = x.shape();
  shape.erase(d);
  Tensor y = empty(shape, int64, x.device());
  dispatch(x.device(), ArgmaxArgs{.x = with_last(x, d), .y = y});
  return y;
}
Tensor cumsum(const Tensor& x, int dim) {
  return apply<Cumsum>(x, {.dim = wrap_dim("cumsum", dim, x.dim())});
}

Tensor Tensor::sum() const { return norma::sum(*this, all_dims(*this)); }
Tensor Tensor::sum(int d, KeepDim keep) const { return norma::sum(*this, {d}, keep); }
Tensor Tensor::mean() const { return norma::mean(*this, all_dims(*this)); }
Tensor Tensor::mean(int d, KeepDim keep) const { return norma::mean(*this, {d}, keep); }
Tensor Tensor::max() const { return norma::max(*this, all_dims(*this)); }
Tensor Tensor::max(int d, KeepDim keep) const { return norma::max(*this, {d}, keep); }
Tensor Tensor::var(int d, KeepDim keep) const { return norma::var(*this, {d}, keep); }
Tensor Tensor::norm() const { return norma::norm(*this); }

}  // namespace norma
