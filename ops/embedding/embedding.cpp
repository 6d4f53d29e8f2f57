#include "norma/ops/embedding/embedding.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "norma/core/dispatch.h"
#include "norma/core/gradient_memory.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/embedding/kernels.h"
#include "norma/ops/embedding/waiting.h"
#include "norma/ops/view/view.h"

namespace norma {

TensorSpec Embedding::check(const Tensor& indices, const Tensor& weight, const Options& o) {
  if (indices.dtype() != int32 && indices.dtype() != int64)
    throw DTypeError("{}: indices must be int32 or int64, but are {}", name,
                     to_string(indices.dtype()));
  if (weight.dim() != 2)
    throw ShapeError("{}: weight must be (vocabulary, width), but is {}", name, weight.shape());
  Shape shape = indices.shape();
  shape.push_back(weight.size(1));
  return {shape, o.dtype.value_or(weight.dtype()), weight.device()};
}
Tensor Embedding::forward(Context& ctx, const Tensor& indices, const Tensor& weight,
                          const Options&) {
  Tensor y = empty(ctx.output());
  const Tensor i = detail::dense(indices), table = even_rows(weight);
  dispatch(y.device(), EmbeddingForwardArgs{.indices = i, .table = table, .y = y});
  ctx.save(indices);
  return y;
}
std::vector<Tensor> Embedding::backward(Context& ctx, const Tensor& dy) {
  const TensorSpec& weight = ctx.input(1);
  // A tied table's other gradient is dense: rows are added to it, and nothing else is touched.
  std::optional<Tensor> arrived;
  if (dy.device().is_cuda())
    if (const Tensor t = detail::take_gradient(1); t.defined()) arrived = t;
  return {Tensor(), apply<EmbeddingBackward>(ctx.saved(0), dy, arrived,
                                             {.rows = weight.shape[0], .dtype = weight.dtype})};
}

Tensor EmbeddingBackward::forward(Context& ctx, const Tensor& indices, const Tensor& x,
                                  const std::optional<Tensor>& arrived, const Options& o) {
  Tensor y = arrived ? *arrived
                     : empty({o.rows, x.shape().back()}, o.dtype.value_or(x.dtype()), x.device());
  const Tensor i = detail::dense(indices), rows = even_rows(x);
  dispatch(y.device(), EmbeddingBackwardArgs{
                           .indices = i, .dy = rows, .dtable = y, .add = arrived.has_value()});
  y.storage()->bump_version();
  ctx.save(indices);
  return y;
}
std::vector<Tensor> EmbeddingBackward::backward(Context& ctx, const Tensor& dy) {
  return {Tensor(), apply<Embedding>(ctx.saved(0), dy, {.dtype = ctx.input(1).dtype})};
}

TensorSpec PositionedEmbedding::check(const Tensor& indices, const Tensor& weight,
                                      const Tensor& positions, const Options& o) {
  TensorSpec spec = Embedding::check(indices, weight, {.dtype = o.dtype});
  if (!is_floating(weight.dtype()) || positions.dtype() != weight.dtype())
    throw DTypeError("{}: weight and positions must have one floating dtype, but are {} and {}",
                     name, to_string(weight.dtype()), to_string(positions.dtype()));
  if (positions.dim() != 2 || positions.size(1) != weight.size(1))
    throw ShapeError("{}: positions must be (places, width) like weight {}, but is {}", name,
                     weight.shape(), positions.shape());
  if (indices.dim() == 0 || o.first < 0 || o.first + indices.shape().back() > positions.size(0))
    throw ShapeError(
        "{}: indices must be (…, T) with first + T up to {}, the rows of positions, but first is "
        "{} and they are {}",
        name, positions.size(0), o.first, indices.shape());
  return spec;
}
Tensor PositionedEmbedding::define(const Tensor& indices, const Tensor& weight,
                                   const Tensor& positions, const Options& o) {
  const Tensor y = apply<Embedding>(indices, weight, {}) +
                   positions.slice(0, o.first, o.first + indices.shape().back());
  return y.to(o.dtype.value_or(y.dtype()));
}
namespace {
PlaceRows places_of(const Tensor& indices, int64_t first) {
  return {.first = first, .length = std::max<int64_t>(1, indices.shape().back())};
}
/// Now, or together with a norm that comes next.
void start(const Tensor& y, const EmbeddingForwardArgs& k, std::vector<Tensor> reads) {
  if constexpr (kBuiltWithCuda)
    if (y.device().is_cuda() && let_embedding_wait(y, k, std::move(reads))) return;
  dispatch(y.device(), k);
}
}  // namespace
Tensor PositionedEmbedding::forward(Context& ctx, const Tensor& indices, const Tensor& weight,
                                    const Tensor& positions, const Options& o) {
  Tensor y = empty(ctx.output());
  const Tensor i = detail::dense(indices), table = even_rows(weight), rows = even_rows(positions);
  start(y,
        {.indices = i,
         .table = table,
         .y = y,
         .positions = rows,
         .places = places_of(indices, o.first)},
        {i, table, rows});
  ctx.save(indices);
  return y;
}
std::vector<Tensor> PositionedEmbedding::backward(Context& ctx, const Tensor& dy) {
  const PositionedEmbeddingOptions& o = ctx.options();
  const auto grads = apply<PositionedEmbeddingBackward>(ctx.saved(0), dy,
                                                        {.rows = ctx.input(1).shape[0],
                                                         .position_rows = ctx.input(2).shape[0],
                                                         .first = o.first,
                                                         .dtype = ctx.input(1).dtype});
  return {Tensor(), grads.dweight, grads.dpositions};
}

PositionedEmbeddingGrads PositionedEmbeddingBackward::forward(Context& ctx, const Tensor& indices,
                                                              const Tensor& dy, const Options& o) {
  const int64_t width = dy.shape().back();
  const DType dtype = o.dtype.value_or(dy.dtype());
  const PositionedEmbeddingGrads grads{empty({o.rows, width}, dtype, dy.device()),
                                       empty({o.position_rows, width}, dtype, dy.device())};
  const Tensor i = detail::dense(indices), rows = even_rows(dy);
  dispatch(dy.device(), EmbeddingBackwardArgs{.indices = i,
                                              .dy = rows,
                                              .dtable = grads.dweight,
                                              .dpositions = grads.dpositions,
                                              .places = places_of(indices, o.first)});
  ctx.save(indices);
  return grads;
}
std::vector<Tensor> PositionedEmbeddingBackward::backward(Context& ctx,
                                                          const std::optional<Tensor>& dweight,
                                                          const std::optional<Tensor>& dpositions) {
  const PositionedEmbeddingBackwardOptions& o = ctx.options();
  const TensorSpec dy = ctx.input(1);
  const auto whole = [&](const std::optional<Tensor>& t, int64_t rows) {
    return t ? *t : zeros({rows, dy.shape.back()}, o.dtype.value_or(dy.dtype), dy.device);
  };
  return {Tensor(), apply<PositionedEmbedding>(ctx.saved(0), whole(dweight, o.rows),
                                               whole(dpositions, o.position_rows),
                                               {.first = o.first, .dtype = dy.dtype})};
}

namespace {
/// The dtype in which a residual stream begins that comes from such a table.
DType in_scope(DType dtype) {
  const DType low = Autocast::current();
  return low == float32 || dtype != float32 ? dtype : low;
}
}  // namespace
Tensor embedding(const Tensor& indices, const Tensor& weight) {
  return apply<Embedding>(indices, weight, {.dtype = in_scope(weight.dtype())});
}
Tensor embedding(const Tensor& indices, const Tensor& weight, const Tensor& positions,
                 int64_t first) {
  return apply<PositionedEmbedding>(indices, weight, positions,
                                    {.first = first, .dtype = in_scope(weight.dtype())});
}

}  // namespace norma
