#include "norma/ops/norm/more_norms.h"

#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/unary.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/view/view.h"

namespace norma {
namespace {

using Maybe = std::optional<Tensor>;

void require_channels(std::string_view name, const Tensor& x, const Maybe& w, const Maybe& b) {
  if (x.dim() < 2) throw ShapeError("{}: x must be (N, C, …), but is {}", name, x.shape());
  for (const Maybe& t : {w, b})
    if (t && t->shape() != Shape{x.shape()[1]})
      throw ShapeError("{}: w and b must be ({},), the channels of x {}, but one is {}", name,
                       x.shape()[1], x.shape(), t->shape());
}
/// (C,) seen beside (N, C, …).
Tensor per_channel(const Tensor& t, const Tensor& x) {
  Shape shape = Shape::filled(x.dim(), 1);
  shape[1] = x.shape()[1];
  return t.reshape(shape);
}
Tensor affine(const Tensor& x_hat, const Maybe& w, const Maybe& b) {
  const Tensor y = w ? x_hat * per_channel(*w, x_hat) : x_hat;
  return b ? y + per_channel(*b, x_hat) : y;
}

}  // namespace

BatchNormResult BatchNorm::define(const Tensor& x, const Maybe& w, const Maybe& b,
                                  const Options& o) {
  require_channels(name, x, w, b);
  std::vector<int> dims{0};
  for (int d = 2; d < x.dim(); ++d) dims.push_back(d);
  const Tensor mean = norma::mean(x, dims, keepdim), variance = var(x, dims, keepdim);
  const Tensor x_hat = (x - mean) * rsqrt(variance + o.eps);
  return {affine(x_hat, w, b), mean.reshape({-1}), variance.reshape({-1})};
}

Tensor GroupNorm::define(const Tensor& x, const Maybe& w, const Maybe& b, const Options& o) {
  require_channels(name, x, w, b);
  if (o.groups < 1 || x.shape()[1] % o.groups != 0)
    throw ValueError("{}: groups must divide the channels of x {}, but are {}", name, x.shape(),
                     o.groups);
  const int64_t size = x.numel() / std::max<int64_t>(1, x.shape()[0] * o.groups);
  const Tensor u = x.reshape({x.shape()[0], o.groups, size});
  const Tensor x_hat = (u - u.mean(-1, keepdim)) * rsqrt(u.var(-1, keepdim) + o.eps);
  return affine(x_hat.reshape(x.shape()), w, b);
}

Tensor InstanceNorm::define(const Tensor& x, const Maybe& w, const Maybe& b, const Options& o) {
  require_channels(name, x, w, b);
  return GroupNorm::define(x, w, b, {.groups = x.shape()[1], .eps = o.eps});
}

Tensor WeightNorm::define(const Tensor& v, const Tensor& g) {
  if (v.dim() != 2 || g.shape() != Shape{v.shape()[0]})
    throw ShapeError("{}: v must be (rows, cols) and g (rows,), but they are {} and {}", name,
                     v.shape(), g.shape());
  return v * (g / sqrt(v.square().sum(-1))).unsqueeze(-1);
}

Tensor batch_norm(const Tensor& x, const Maybe& w, const Maybe& b, const BatchNormOptions& o) {
  return apply<BatchNorm>(x, w, b, o).y;
}
Tensor group_norm(const Tensor& x, const Maybe& w, const Maybe& b, const GroupNormOptions& o) {
  return apply<GroupNorm>(x, w, b, o);
}
Tensor instance_norm(const Tensor& x, const Maybe& w, const Maybe& b, const BatchNormOptions& o) {
  return apply<InstanceNorm>(x, w, b, o);
}
Tensor weight_norm(const Tensor& v, const Tensor& g) { return apply<WeightNorm>(v, g); }

}  // namespace norma
