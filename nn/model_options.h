#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "norma/core/tensor.h"
#include "norma/ops/norm/norm.h"

namespace norma::nn {

/// auto_: learned, but none where a layer has a Mamba block, which tells positions by itself.
enum class Positions { auto_, none, learned, rotary };
enum class MlpKind { gelu, gelu_tanh, swiglu };

/// Of Mamba blocks; the defaults are the papers'.
struct MambaOptions {
  int64_t d_state = 0;    ///< N; 0: 16 for mamba1, 128 for mamba2 and mamba3
  int64_t d_conv = 4;     ///< K, taps of the convolution
  int64_t expand = 2;     ///< inner width over d_model
  int64_t head_dim = 64;  ///< P, mamba2 and mamba3; must divide the inner width
  int64_t n_groups = 1;   ///< G, likewise: groups of heads that share B and C
  /// The gated norm before or behind the gate; absent: behind it for mamba2, before it for mamba3.
  std::optional<GateOrder> gate = none;
  std::string norm = "auto";   ///< its kind: rms, layer, none; auto: rms for mamba2, else none
  int64_t norm_groups = 0;     ///< its groups of channels; 0: n_groups for mamba2, heads for mamba3
  double rope_fraction = 0.5;  ///< mamba3: the part of B and C that turns
  double dt_min = 1e-3, dt_max = 0.1, dt_floor = 1e-4;  ///< Δ at the start, log-uniform between
  bool selective = true;  ///< mamba1: false makes Δ, B and C constants, a time-invariant system
};

struct LanguageModelOptions {
  int64_t vocab_size = 0;
  int64_t context = 64;  ///< longest input; a model of Mamba blocks alone has no limit
  int64_t n_layers = 4;
  int64_t n_heads = 4;
  int64_t n_kv_heads = 0;  ///< 0: n_heads
  int64_t d_model = 128;
  int64_t d_ff = 0;  ///< 0: 4 d_model; for swiglu 8/3 d_model, rounded up to a multiple of 8
  std::string norm = "rms";
  std::string placement = "pre";
  MlpKind mlp = MlpKind::gelu;
  Positions positions = Positions::auto_;
  double dropout = 0;
  bool qk_norm = false;      ///< a norm of each head's queries and keys
  bool bias = false;         ///< in every linear layer and LayerNorm
  bool tie = true;           ///< one matrix for embedding and output
  bool wide_stream = false;  ///< the residual stream stays float32 under Autocast
  /// What a layer is made of: sub-layers attention, mlp, mamba1, mamba2, mamba3 joined by +, alike
  /// in all layers or in runs, as in "mamba2:3,attention+mlp:1". "transformer" is attention+mlp,
  /// "hybrid" a transformer layer after every three of mamba2.
  std::string layers = "transformer";
  MambaOptions mamba = {};
};

/// What a sub-layer carries from one token to the next in generation; tensors appear as needed.
struct MixerState {
  Tensor conv, ssm;     ///< Mamba: of constant size
  Tensor angle;         ///< mamba3: θ of each head, (B, H, angles)
  Tensor keys, values;  ///< attention: (B, H_kv, context, D), the first `length` rows in use;
                        ///< mamba3: the last token's b (B, H, N) and x (B, H, P)
  int64_t length = 0;   ///< tokens seen
};

}  // namespace norma::nn
