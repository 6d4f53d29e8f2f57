#pragma once

#include <optional>
#include <string>
#include <vector>

#include "norma/nn/attention.h"
#include "norma/nn/linear.h"
#include "norma/nn/mamba.h"
#include "norma/nn/mlp.h"
#include "norma/nn/model_options.h"
#include "norma/nn/placement/placement.h"

namespace norma::nn {

enum class SublayerKind { attention, mlp, mamba1, mamba2, mamba3 };
/// The sub-layers of each layer, from LanguageModelOptions::layers. ValueError where it does not
/// parse, its runs do not add up to n_layers, or a layer has two of a kind.
std::vector<std::vector<SublayerKind>> layers_from_string(std::string_view text, int64_t n_layers);

/// One layer: its sub-layers and the norms that its placement wants.
struct Block {
  Block(const LanguageModelOptions& o, std::vector<SublayerKind> sublayers, const Placement& p,
        const LayerInfo& layer_info);
  /// `states`, one for each sub-layer, or none.
  void operator()(Residual& r, std::span<MixerState> states = {}) const;
  void visit(Visitor& v) {
    v("", norms), v("attn", attn), v("mlp", mlp), v("mixer", mamba1), v("mixer", mamba2);
    v("mixer", mamba3);
  }

  std::vector<SublayerKind> kinds;
  const Placement* placement;
  LayerInfo info;
  Parts norms;
  std::optional<SelfAttention> attn;
  std::optional<Mlp> mlp;
  std::optional<Mamba1> mamba1;
  std::optional<Mamba2> mamba2;
  std::optional<Mamba3> mamba3;

 private:
  Tensor apply(SublayerKind kind, const Tensor& x, MixerState* state) const;
};

/// What generation carries from token to token: constant for Mamba blocks, keys and values for
/// attention.
struct DecodingState {
  int64_t length = 0;  ///< tokens seen
  std::vector<std::vector<MixerState>> layers = {};
};

/// A language model: an embedding, layers of attention, MLPs and Mamba blocks, a norm, an output
/// layer. By default a transformer (Vaswani et al. 2017) with the names and the initialization of
/// GPT-2: normal with σ 0.02, what writes into the residual stream divided by √(2 n_layers); Mamba
/// blocks start as their papers have them.
///   wte.weight  wpe.weight  h.0.ln_1.weight  h.0.attn.c_attn.weight  h.0.mixer.in_proj.weight  …
///   ln_f.weight  lm_head.weight
struct LanguageModel {
  explicit LanguageModel(const LanguageModelOptions& o);
  LanguageModel(LanguageModel&&) = default;

  /// Logits (B, T, vocab_size) of tokens (B, T), int32 or int64. ShapeError where T > context and
  /// the model has that limit. With places, int32 or int64 (n), only those there, (n, vocab_size):
  /// token t of row b is place b T + t. What an answer does not ask for takes no output layer.
  Tensor operator()(const Tensor& tokens, const std::optional<Tensor>& places = none) const;
  /// Logits (B, 1, vocab_size) of what follows these tokens, which follow those that the state has
  /// seen: the same as the whole sequence at once, to rounding. All tokens may come at once, or one
  /// by one.
  Tensor next(const Tensor& tokens, DecodingState& state) const;
  /// Whether inputs are at most options.context long: attention's cache and learned positions end.
  bool has_limit() const { return limited_; }

  std::vector<Tensor> parameters() { return nn::parameters(*this); }
  void visit(Visitor& v) {
    v("wte", wte), v("wpe", wpe), v("h", h), v("", norms), v("lm_head", lm_head);
    v("dropout", dropout);
  }

  LanguageModelOptions options;
  Embedding wte;
  std::optional<Embedding> wpe;  ///< where positions are learned
  std::vector<Block> h;
  Parts norms;  ///< around the stack
  Linear lm_head;
  Dropout dropout;

 private:
  /// The residual stream behind the last norm, for tokens that begin at position `first`.
  Tensor hidden(const Tensor& tokens, int64_t first, DecodingState* state,
                const std::optional<Tensor>& places = none) const;
  bool limited_ = false;
};

}  // namespace norma::nn
