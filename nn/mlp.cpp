#include "norma/nn/mlp.h"

#include <algorithm>

#include "norma/nn/init.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/matmul/gelu_mlp.h"
#include "norma/ops/view/view.h"

namespace norma::nn {
namespace {

int64_t d_ff_of(const LanguageModelOptions& o) {
  if (o.d_ff > 0) return o.d_ff;
  if (o.mlp != MlpKind::swiglu) return 4 * o.d_model;
  return (8 * o.d_model / 3 + 7) / 8 * 8;
}

}  // namespace

Mlp::Mlp(const LanguageModelOptions& o)
    : kind(o.mlp),
      c_fc({.d_in = o.d_model,
            .d_out = d_ff_of(o) * (o.mlp == MlpKind::swiglu ? 2 : 1),
            .bias = o.bias}),
      c_proj({.d_in = d_ff_of(o), .d_out = o.d_model, .bias = o.bias}),
      dropout(o.dropout) {
  init_inner(c_fc);
  init_output(c_proj, 2 * std::max<int64_t>(1, o.n_layers));
}
Tensor Mlp::operator()(const Tensor& x) const {
  if (kind == MlpKind::gelu_tanh) {
    const auto bias = [](const Linear& l) {
      return l.bias.defined() ? std::optional<Tensor>(l.bias) : none;
    };
    return dropout(gelu_mlp(x, c_fc.weight, bias(c_fc), c_proj.weight, bias(c_proj)));
  }
  const Tensor u = c_fc(x);
  if (kind == MlpKind::gelu) return dropout(c_proj(gelu(u)));
  const auto halves = chunk(u, 2, -1);
  return dropout(c_proj(silu(halves[0]) * halves[1]));
}

}  // namespace norma::nn
