#include "norma/ops/dropout/dropout.h"

#include "norma/core/dispatch.h"
#include "norma/ops/dropout/kernels.h"

namespace norma {

Tensor Dropout::forward(Context&, const Tensor& x, const Options& o) {
  if (!is_floating(x.dtype()))
    throw DTypeError("{}: x must be floating, but is {}", name, to_string(x.dtype()));
  const Tensor u = detail::dense(x);
  Tensor y = empty_like(u);
  dispatch(x.device(), DropoutArgs{.p = o.p, .key = o.key, .x = u, .y = y});
  return y;
}
Tensor Dropout::backward(Context& ctx, const Tensor& dy) {
  return apply<Dropout>(dy, ctx.options());  // linear in x: the same mask
}

Tensor dropout(const Tensor& x, double p) {
  if (!(p >= 0 && p < 1)) throw ValueError("dropout: p must be from 0 to below 1, but is {}", p);
  if (p == 0) return x;
  return apply<Dropout>(x, {.p = p, .key = ambient_generator().next()});
}

}  // namespace norma
