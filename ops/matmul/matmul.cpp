#include "norma/ops/matmul/matmul.h"

#include "norma/core/dispatch.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/matmul/kernels.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/view/view.h"

namespace norma {
namespace {

void require_one_floating_dtype(std::string_view name, std::string_view first, const Tensor& a,
                                std::string_view second, const Tensor& b) {
  if (a.dtype() != b.dtype())
    throw DTypeError(
        "{}: {} and {} must have one dtype, but are {} and {}; convert one with .to(dtype)", name,
        first, second, to_string(a.dtype()), to_string(b.dtype()));
  if (!is_floating(a.dtype()))
    throw DTypeError("{}: {} and {} must be floating, but are {}; convert them with .to(float32)",
                     name, first, second, to_string(a.dtype()));
}

Shape leading(const Shape& shape) { return Shape(std::span(shape.begin(), shape.end() - 2)); }
Shape with_matrix(Shape shape, int64_t rows, int64_t cols) {
  shape.push_back(rows), shape.push_back(cols);
  return shape;
}

/// In a dtype that has products, with rows or columns dense.
Tensor ready(const Tensor& t) {
  const Tensor u = t.to(stats_dtype(t.dtype()));
  const int64_t rows = u.strides()[u.dim() - 2], cols = u.strides()[u.dim() - 1];
  return rows == 1 || cols == 1 ? u : detail::dense(u);
}

/// All leading dimensions and the rows as one, where that needs no copy.
Tensor as_matrix(const Tensor& t) {
  if (t.dim() == 2) return t;
  return t.reshape({-1, t.shape().back()});
}

Tensor product(const Tensor& a, const Tensor& b, const Tensor& bias, const TensorSpec& spec) {
  const DType dtype = stats_dtype(spec.dtype);
  Tensor c = empty(spec.shape, dtype, spec.device);
  Tensor left = ready(a), right = ready(b), out = c;
  if (b.dim() == 2 && a.dim() > 2) left = ready(as_matrix(a)), out = as_matrix(c);
  const Shape batch = leading(out.shape());
  const auto expand = [&](const Tensor& t) {
    const Shape& s = t.shape();
    return detail::expanded(t, with_matrix(batch, s[s.dim() - 2], s[s.dim() - 1]));
  };
  dispatch(c.device(), MatmulArgs{.a = expand(left), .b = expand(right), .bias = bias, .c = out});
  return c.to(spec.dtype);
}

}  // namespace

TensorSpec Matmul::check(const Tensor& a, const Tensor& b) {
  require_one_floating_dtype(name, "a", a, "b", b);
  if (a.dim() < 2 || b.dim() < 2)
    throw ShapeError(
        "{}: a and b need two dimensions or more, but are {} and {}; unsqueeze a vector", name,
        a.shape(), b.shape());
  const int64_t n = a.size(-2), k = a.size(-1), m = b.size(-1);
  if (b.size(-2) != k) {
    const std::string hint = m == k ? "; did you mean b.t()?" : "";
    throw ShapeError("{}: a {} and b {} do not chain, {} ≠ {}{}", name, a.shape(), b.shape(), k,
                     b.size(-2), hint);
  }
  const Shape batch = broadcast_shapes(name, leading(a.shape()), leading(b.shape()));
  return {with_matrix(batch, n, m), a.dtype(), a.device()};
}
Tensor Matmul::forward(Context& ctx, const Tensor& a, const Tensor& b) {
  ctx.save(a, b);
  return product(a, b, Tensor(), ctx.output());
}
MatmulGrads Matmul::backward(Context& ctx, const Tensor& dc) {
  const Tensor a = ctx.saved(0), b = ctx.saved(1);
  MatmulGrads grads;
  if (ctx.needs(0)) grads.da = sum_to(matmul(dc, b.t()), a.shape());
  if (ctx.needs(1)) {
    if (b.dim() == 2)
      grads.db = matmul(as_matrix(a).t(), as_matrix(dc));
    else
      grads.db = sum_to(matmul(a.t(), dc), b.shape());
  }
  return grads;
}

TensorSpec Linear::check(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b) {
  require_one_floating_dtype(name, "x", x, "w", w);
  if (w.dim() != 2 || x.dim() < 1 || x.size(-1) != w.size(1))
    throw ShapeError("{}: w must be (d_out, d_in) for x (…, d_in), but they are {} and {}", name,
                     w.shape(), x.shape());
  if (b && (b->shape() != Shape{w.size(0)} || b->dtype() != x.dtype()))
    throw ShapeError("{}: b must be ({},) of {}, but is {} of {}", name, w.size(0),
                     to_string(x.dtype()), b->shape(), to_string(b->dtype()));
  TensorSpec spec = x.spec();
  spec.shape[spec.shape.dim() - 1] = w.size(0);
  return spec;
}
Tensor Linear::define(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b) {
  const Tensor rows = x.dim() == 1 ? x.unsqueeze(0) : x;
  const Tensor y = matmul(rows, w.t());
  const Tensor shaped = x.dim() == 1 ? y.squeeze(0) : y;
  return b ? shaped + *b : shaped;
}
Tensor Linear::forward(Context& ctx, const Tensor& x, const Tensor& w,
                       const std::optional<Tensor>& b) {
  ctx.save(x, w);
  TensorSpec spec = ctx.output();
  const Shape shape = spec.shape;
  if (x.dim() == 1) spec.shape.insert(0, 1);
  const Tensor bias = b ? detail::dense(b->to(stats_dtype(b->dtype()))) : Tensor();
  return product(x.dim() == 1 ? x.unsqueeze(0) : x, w.t(), bias, spec).reshape(shape);
}
LinearGrads Linear::backward(Context& ctx, const Tensor& dy) {
  const Tensor x = ctx.saved(0), w = ctx.saved(1);
  const Tensor rows = dy.reshape({-1, w.size(0)});
  LinearGrads grads;
  if (ctx.needs(0)) grads.dx = matmul(rows, w).reshape(x.shape());
  if (ctx.needs(1)) grads.dw = matmul(rows.t(), x.reshape({-1, w.size(1)}));
  if (ctx.needs(2)) grads.db = rows.sum(0);
  return grads;
}

Tensor matmul(const Tensor& a, const Tensor& b) { return apply<Matmul>(a, b); }
Tensor linear(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b) {
  return apply<Linear>(x, w, b);
}

}  // namespace norma
