#include "norma/ops/derivative/derivative.h"

#include "norma/core/autograd.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/view/view.h"

namespace norma {
namespace {

/// x itself where it can be differentiated, so that its history goes on; else a leaf of its values.
Tensor variable(const Tensor& x) { return x.requires_grad() ? x : x.detach().requires_grad_(); }

void require_like(std::string_view where, std::string_view what, const Tensor& v, const Tensor& t) {
  if (v.shape() != t.shape())
    throw ShapeError("{}: v must be like {}, {}, but is {}", where, what, t.shape(), v.shape());
}

}  // namespace

Tensor vjp(const UnaryTensorFunction& f, const Tensor& x, const Tensor& v) {
  const bool create_graph = is_grad_enabled() && (x.requires_grad() || v.requires_grad());
  const EnableGrad recording;
  const Tensor at = variable(x), y = f(at);
  require_like("vjp", "f(x)", v, y);
  return grad({y}, {at}, {v}, {.create_graph = create_graph})[0];
}

Tensor jvp(const UnaryTensorFunction& f, const Tensor& x, const Tensor& v) {
  require_like("jvp", "x", v, x);
  const bool create_graph = is_grad_enabled() && (x.requires_grad() || v.requires_grad());
  const EnableGrad recording;
  const Tensor at = variable(x), y = f(at);
  const Tensor u = zeros_like(y).requires_grad_();
  const Tensor pulled = grad({y}, {at}, {u}, {.create_graph = true})[0];
  return grad({pulled}, {u}, {v}, {.create_graph = create_graph})[0];
}

Tensor jacobian(const UnaryTensorFunction& f, const Tensor& x) {
  const bool create_graph = is_grad_enabled() && x.requires_grad();
  const EnableGrad recording;
  const Tensor at = variable(x), y = f(at);
  Shape shape = y.shape();
  for (int64_t size : x.shape()) shape.push_back(size);
  std::vector<Tensor> rows;
  const Tensor unit = eye(y.numel(), y.dtype(), y.device());
  for (int64_t i = 0; i < y.numel(); ++i)
    rows.push_back(grad({y}, {at}, {unit.select(0, i).reshape(y.shape())},
                        {.retain_graph = true, .create_graph = create_graph})[0]);
  if (rows.empty()) return zeros(shape, x.dtype(), x.device());
  return stack(rows, 0).reshape(shape);
}

Tensor hvp(const UnaryTensorFunction& f, const Tensor& x, const Tensor& v) {
  require_like("hvp", "x", v, x);
  const bool create_graph = is_grad_enabled() && (x.requires_grad() || v.requires_grad());
  const EnableGrad recording;
  const Tensor at = variable(x);
  const Tensor gradient = grad({f(at)}, {at}, {}, {.create_graph = true})[0];
  if (!gradient.requires_grad()) return zeros_like(x);  // f is linear
  return grad({gradient}, {at}, {v}, {.create_graph = create_graph})[0];
}

}  // namespace norma
