#pragma once

#include <string>
#include <vector>

#include "norma/nn/linear.h"
#include "norma/nn/placement/placement.h"

namespace norma::nn {

enum class Positions { learned, rotary };
enum class MlpKind { gelu, swiglu };

struct TransformerOptions {
  int64_t vocab_size = 0;
  int64_t context = 64;  ///< longest input
  int64_t n_layers = 4;
  int64_t n_heads = 4;
  int64_t n_kv_heads = 0;  ///< 0: n_heads
  int64_t d_model = 128;
  int64_t d_ff = 0;  ///< 0: 4 d_model; for swiglu 8/3 d_model, rounded up to a multiple of 8
  std::string norm = "rms";
  std::string placement = "pre";
  MlpKind mlp = MlpKind::gelu;
  Positions positions = Positions::learned;
  double dropout = 0;
  bool qk_norm = false;  ///< a norm of each head's queries and keys
  bool bias = false;     ///< in every linear layer and LayerNorm
  bool tie = true;       ///< one matrix for embedding and output
};

/// Causal self-attention, several heads, optionally grouped queries (see
/// scaled_dot_product_attention).
struct SelfAttention {
  explicit SelfAttention(const TransformerOptions& o);
  Tensor operator()(const Tensor& x) const;  ///< (B, T, d_model) both ways
  void visit(Visitor& v) {
    v("c_attn", c_attn), v("c_proj", c_proj), v("q_norm", q_norm), v("k_norm", k_norm);
    v("dropout", dropout);
  }

  int64_t n_heads, n_kv_heads, head_dim;
  Positions positions;
  Linear c_attn, c_proj;
  std::optional<Norm> q_norm, k_norm;
  Dropout dropout;
};

/// gelu: W₂ gelu(W₁ x). swiglu: W₂ (silu(a) ⊙ b), (a, b) = W₁ x (Shazeer 2020, arXiv:2002.05202).
struct Mlp {
  explicit Mlp(const TransformerOptions& o);
  Tensor operator()(const Tensor& x) const;
  void visit(Visitor& v) { v("c_fc", c_fc), v("c_proj", c_proj), v("dropout", dropout); }

  MlpKind kind;
  Linear c_fc, c_proj;
  Dropout dropout;
};

/// One layer: its two sub-layers and the norms that its placement wants.
struct Block {
  Block(const TransformerOptions& o, const Placement& p, const LayerInfo& layer_info);
  void operator()(Residual& r) const;
  void visit(Visitor& v) { v("", norms), v("attn", attn), v("mlp", mlp); }

  const Placement* placement;
  LayerInfo info;
  Parts norms;
  SelfAttention attn;
  Mlp mlp;
};

/// A transformer language model (Vaswani et al. 2017; the names and the initialization of GPT-2:
/// normal with σ 0.02, what writes into the residual stream divided by √(2 n_layers)).
///   wte.weight  wpe.weight  h.0.ln_1.weight  h.0.attn.c_attn.weight  …  ln_f.weight lm_head.weight
struct Transformer {
  explicit Transformer(const TransformerOptions& o);
  Transformer(Transformer&&) = default;

  /// Logits (B, T, vocab_size) of tokens (B, T), int32 or int64. ShapeError where T > context.
  Tensor operator()(const Tensor& tokens) const;
  std::vector<Tensor> parameters() { return nn::parameters(*this); }
  void visit(Visitor& v) {
    v("wte", wte), v("wpe", wpe), v("h", h), v("", norms), v("lm_head", lm_head);
    v("dropout", dropout);
  }

  TransformerOptions options;
  Embedding wte;
  std::optional<Embedding> wpe;  ///< where positions are learned
  std::vector<Block> h;
  Parts norms;  ///< around the stack
  Linear lm_head;
  Dropout dropout;
};

}  // namespace norma::nn
