#include "norma/ops/embedding/embedding.h"

#include "norma/core/dispatch.h"
#include "norma/ops/embedding/kernels.h"

namespace norma {

TensorSpec Embedding::check(const Tensor& indices, const Tensor& weight) {
  if (indices.dtype() != int32 && indices.dtype() != int64)
    throw DTypeError("{}: indices must be int32 or int64, but are {}", name,
                     to_string(indices.dtype()));
  if (weight.dim() != 2)
    throw ShapeError("{}: weight must be (vocabulary, width), but is {}", name, weight.shape());
  Shape shape = indices.shape();
  shape.push_back(weight.size(1));
  return {shape, weight.dtype(), weight.device()};
}
Tensor Embedding::forward(Context& ctx, const Tensor& indices, const Tensor& weight) {
  Tensor y = empty(ctx.output());
  const Tensor i = detail::dense(indices), table = even_rows(weight);
  dispatch(y.device(), EmbeddingForwardArgs{.indices = i, .table = table, .y = y});
  ctx.save(indices);
  return y;
}
std::vector<Tensor> Embedding::backward(Context& ctx, const Tensor& dy) {
  return {Tensor(), apply<EmbeddingBackward>(ctx.saved(0), dy, {.rows = ctx.input(1).shape[0]})};
}

Tensor EmbeddingBackward::forward(Context& ctx, const Tensor& indices, const Tensor& x,
                                  const Options& o) {
  Tensor y = empty({o.rows, x.shape().back()}, x.dtype(), x.device());
  const Tensor i = detail::dense(indices), rows = even_rows(x);
  dispatch(y.device(), EmbeddingBackwardArgs{.indices = i, .dy = rows, .dtable = y});
  ctx.save(indices);
  return y;
}
std::vector<Tensor> EmbeddingBackward::backward(Context& ctx, const Tensor& dy) {
  return {Tensor(), embedding(ctx.saved(0), dy)};
}

Tensor embedding(const Tensor& indices, const Tensor& weight) {
  const Tensor y = apply<Embedding>(indices, weight);
  const DType low = Autocast::current();
  return low == float32 || y.dtype() != float32 ? y : y.to(low);
}

}  // namespace norma
