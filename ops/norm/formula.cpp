#include "norma/ops/norm/formula.h"

#include "norma/ops/dropout/dropout.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/reduce/reduce.h"

namespace norma::detail {

int64_t group_size(const Tensor& x, const NormOptions& o) {
  return o.group == 0 ? x.shape().back() : o.group;
}
Shape stats_shape(const Tensor& x, const NormOptions& o) {
  Shape shape = x.shape();
  int64_t& last = shape[shape.dim() - 1];
  last = o.group == 0 ? 1 : last / o.group;
  return shape;
}
Shape row_shape(const Tensor& x) {
  Shape shape;
  for (int i = 0; i + 1 < x.dim(); ++i) shape.push_back(x.shape()[i]);
  return shape;
}

Tensor grouped(const Tensor& t, const NormOptions& o) {
  Shape shape = stats_shape(t, o);
  shape.push_back(group_size(t, o));
  return t.reshape(shape);
}
Tensor over_group(const Tensor& t, const NormOptions& o) {
  return o.kind == NormKind::l2 ? t.sum(-1, keepdim) : t.mean(-1, keepdim);
}

Tensor activation(const Tensor& z, const NormOptions& o) {
  switch (o.activation) {
    case GateActivation::silu:
      return silu(z);
    case GateActivation::sigmoid:
      return sigmoid(z);
    case GateActivation::swish:
      return z * sigmoid(z * o.beta);
    case GateActivation::gelu:
      return gelu(z);
    case GateActivation::identity:
      return z;
  }
  return z;
}
Tensor activation_slope(const Tensor& z, const NormOptions& o) {
  switch (o.activation) {
    case GateActivation::silu:
    case GateActivation::swish: {
      const Tensor v = o.activation == GateActivation::swish ? z * o.beta : z;
      const Tensor s = sigmoid(v);
      return s * (v * (1 - s) + 1);
    }
    case GateActivation::sigmoid: {
      const Tensor s = sigmoid(z);
      return s * (1 - s);
    }
    case GateActivation::gelu:
      return apply<GeluBackward>(ones_like(z), z);
    case GateActivation::identity:
      return ones_like(z);
  }
  return z;
}

Tensor dropped_and_scaled(const Tensor& x, const Maybe& row_scale, const NormOptions& o) {
  Tensor s = x;
  if (o.dropout > 0) s = apply<Dropout>(s, {.p = o.dropout, .key = o.key});
  return row_scale ? s * row_scale->to(s.dtype()).unsqueeze(-1) : s;
}

Tensor whole_row(const Tensor& w, DType dtype, int64_t cols) {
  const int64_t n = w.numel();
  const Tensor wide = w.to(dtype);
  return n == cols ? wide : wide.unsqueeze(0).expand({cols / n, n}).reshape({cols});
}
Tensor weight_of(const Tensor& w, const NormOptions& o, DType dtype, int64_t cols) {
  const Tensor gain = whole_row(w, dtype, cols);
  return o.zero_centered ? gain + 1 : gain;
}
Tensor affine(const Tensor& x_hat, const Maybe& w, const Maybe& b, const NormOptions& o) {
  const int64_t cols = x_hat.shape().back();
  Tensor n = x_hat;
  if (w) n = n * weight_of(*w, o, n.dtype(), cols);
  return b ? n + whole_row(*b, n.dtype(), cols) : n;
}
Tensor as_multiplied(const Tensor& x_hat, DType dtype, const NormOptions& o) {
  return o.casting == Casting::rounded ? x_hat.to(dtype).to(x_hat.dtype()) : x_hat;
}
Tensor sum_rows(const Tensor& t, int64_t n, DType dtype) {
  const int64_t rows = n == 0 ? 0 : t.numel() / n;
  return t.reshape({rows, n}).sum(0).to(dtype);
}

Formula::Formula(const Tensor& h, const Tensor& z, const NormOptions& o) {
  if (z.defined()) gate = activation(z, o);
  Tensor c = grouped(o.gate == GateOrder::gate_then_norm ? h * gate : h, o);
  if (o.kind == NormKind::layer) {
    mean = c.mean(-1, keepdim);
    c = c - mean;
    mean_rest = c.mean(-1, keepdim);  // 0 but for rounding
    c = c - mean_rest;
  }
  rstd = rsqrt(over_group(c.square(), o) + o.eps);
  x_hat = (c * rstd).reshape(h.shape());
}

Tensor through_norm(const Tensor& g, const Tensor& x_hat, const Tensor& rstd,
                    const NormOptions& o) {
  const Tensor v = grouped(g, o), unit = grouped(x_hat, o);
  Tensor du = v - unit * over_group(v * unit, o);
  if (o.kind == NormKind::layer) du = du - v.mean(-1, keepdim);
  return (rstd * du).reshape(g.shape());
}

}  // namespace norma::detail
