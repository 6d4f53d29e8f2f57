#include "norma/ops/index/index.h"

#include "norma/core/dispatch.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/index/kernels.h"

namespace norma {
namespace {

void require_index(std::string_view name, std::string_view what, const Tensor& x,
                   const Tensor& index, bool same_size) {
  if (index.dtype() != int32 && index.dtype() != int64)
    throw DTypeError("{}: index must be int32 or int64, but is {}", name, to_string(index.dtype()));
  bool fits = x.dim() == index.dim() && x.dim() > 0;
  for (int i = 0; fits && i + (same_size ? 0 : 1) < x.dim(); ++i)
    fits = x.shape()[i] == index.shape()[i];
  if (!fits)
    throw ShapeError("{}: index must have the sizes of {} {}{}, but is {}", name, what, x.shape(),
                     same_size ? "" : " but in the dimension itself", index.shape());
}
Shape with_last(Shape shape, int64_t size) {
  shape[shape.dim() - 1] = size;
  return shape;
}

}  // namespace

void Gather::check(const Tensor& x, const Tensor& index) {
  require_index(name, "x", x, index, false);
}
Tensor Gather::forward(Context& ctx, const Tensor& x, const Tensor& index) {
  Tensor y = empty(index.shape(), x.dtype(), x.device());
  const Tensor u = even_rows(x), i = even_rows(index);
  dispatch(x.device(), GatherArgs{.x = u, .index = i, .y = y});
  ctx.save(index);
  return y;
}
Tensor Gather::backward(Context& ctx, const Tensor& dy) {
  return apply<Scatter>(dy, ctx.saved(0), {.size = ctx.input(0).shape.back()});
}

void Scatter::check(const Tensor& src, const Tensor& index, const Options&) {
  require_index(name, "src", src, index, true);
}
Tensor Scatter::forward(Context& ctx, const Tensor& src, const Tensor& index, const Options& o) {
  Tensor y = empty(with_last(src.shape(), o.size), src.dtype(), src.device());
  const Tensor s = even_rows(src), i = even_rows(index);
  dispatch(src.device(), ScatterArgs{.src = s, .index = i, .y = y});
  ctx.save(index);
  return y;
}
Tensor Scatter::backward(Context& ctx, const Tensor& dy) { return apply<Gather>(dy, ctx.saved(0)); }

Tensor gather(const Tensor& x, int dim, const Tensor& index) {
  const int d = wrap_dim("gather", dim, x.dim()), last = x.dim() - 1;
  if (d == last || index.dim() != x.dim()) return apply<Gather>(x, index);
  return apply<Gather>(x.transpose(d, last), index.transpose(d, last)).transpose(d, last);
}
Tensor scatter_add(const Tensor& x, int dim, const Tensor& index, const Tensor& src) {
  const int d = wrap_dim("scatter_add", dim, x.dim()), last = x.dim() - 1;
  if (src.dim() != x.dim() || index.dim() != x.dim())
    throw ShapeError(
        "scatter_add: x, index and src must have as many dimensions, but are {}, {} and {}",
        x.shape(), index.shape(), src.shape());
  const Tensor added =
      apply<Scatter>(src.transpose(d, last), index.transpose(d, last), {.size = x.shape()[d]});
  return x + added.transpose(d, last);
}

TopK topk(const Tensor& x, int64_t k) {
  if (x.dim() == 0 || k < 0 || k > x.size(-1))
    throw ValueError("topk: k must be from 0 to the last dimension of x {}, but is {}", x.shape(),
                     k);
  Tensor indices = empty(with_last(x.shape(), k), int64, x.device());
  const Tensor u = even_rows(x);
  dispatch(x.device(), TopKArgs{.x = u, .indices = indices});
  return {apply<Gather>(x, indices), indices};
}

}  // namespace norma
