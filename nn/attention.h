#pragma once

#include "norma/nn/linear.h"
#include "norma/nn/model_options.h"
#include "norma/nn/norm.h"

namespace norma::nn {

/// Causal self-attention, several heads, optionally grouped queries (see
/// scaled_dot_product_attention), with dropout on its probabilities too.
struct SelfAttention {
  explicit SelfAttention(const LanguageModelOptions& o);
  /// (B, T, d_model) both ways. With a state the tokens follow those that it has seen; together
  /// at most o.context: ShapeError.
  Tensor operator()(const Tensor& x, MixerState* state = nullptr) const;
  void visit(Visitor& v) {
    v("c_attn", c_attn), v("c_proj", c_proj), v("q_norm", q_norm), v("k_norm", k_norm);
    v("dropout", dropout);
  }

  int64_t n_heads, n_kv_heads, head_dim, context;
  bool rotates;
  Linear c_attn, c_proj;
  std::optional<Norm> q_norm, k_norm;
  Dropout dropout;
};

}  // namespace norma::nn
