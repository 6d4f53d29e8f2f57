#pragma once

#include "norma/nn/linear.h"
#include "norma/nn/model_options.h"

namespace norma::nn {

/// gelu: W₂ gelu(W₁ x). gelu_tanh: the same with GPT-2's approximation, fused (gelu_mlp). swiglu:
/// W₂ (silu(a) ⊙ b), (a, b) = W₁ x (Shazeer 2020, arXiv:2002.05202).
struct Mlp {
  explicit Mlp(const LanguageModelOptions& o);
  Tensor operator()(const Tensor& x) const;
  void visit(Visitor& v) { v("c_fc", c_fc), v("c_proj", c_proj), v("dropout", dropout); }

  MlpKind kind;
  Linear c_fc, c_proj;
  Dropout dropout;
};

}  // namespace norma::nn
