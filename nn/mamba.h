#pragma once

#include "norma/nn/linear.h"
#include "norma/nn/model_options.h"

namespace norma::nn {

/// The weight (C, 1, K) and bias (C) of a causal convolution, named as PyTorch's Conv1d.
struct ShortConv {
  ShortConv(int64_t channels, int64_t taps);
  /// x (B, T, C); with SiLU.
  Tensor operator()(const Tensor& x, MixerState* state) const;
  void visit(Visitor& v) { v("weight", weight), v("bias", bias); }

  Parameter weight, bias;
};

/// The block of Mamba (Gu & Dao 2023, arXiv:2312.00752), E = expand · d_model:
///   (x, z) = W_in u,  x ← silu(conv(x)),  (δ, b, c) = W_x x,  Δ = softplus(W_Δ δ + bias)
///   y = selective_scan(x, Δ, −exp(A_log), b, c) + d x,  out = W_out (y ⊙ silu(z))
/// `selective = false` replaces Δ, b and c by what a constant input would give: parameters of the
/// time-invariant system that the paper compares with.
struct Mamba1 {
  explicit Mamba1(const LanguageModelOptions& o);
  /// (B, T, d_model) both ways. With a state the tokens follow those that it has seen.
  Tensor operator()(const Tensor& u, MixerState* state = nullptr) const;
  void visit(Visitor& v) {
    v("A_log", a_log), v("D", d), v("in_proj", in_proj), v("conv1d", conv1d);
    v("x_proj", x_proj), v("dt_proj", dt_proj), v("dt_bias", dt_bias), v("b", b), v("c", c);
    v("out_proj", out_proj);
  }

  int64_t d_inner, d_state, dt_rank;
  Parameter a_log, d;  ///< (E, N), (E)
  Linear in_proj;
  ShortConv conv1d;
  std::optional<Linear> x_proj, dt_proj;  ///< where selective
  Parameter dt_bias, b, c;                ///< where not: (E), (N), (N)
  Linear out_proj;
};

/// The gated norm at the end of a block; without a kind y ⊙ silu(z).
struct BlockNorm {
  /// `kind`, `gate` and `groups` are the block's own choice, which o.mamba may overrule.
  BlockNorm(const MambaOptions& o, int64_t width, std::string_view kind, GateOrder gate,
            int64_t groups);
  /// y and z (B, T, width).
  Tensor operator()(const Tensor& y, const Tensor& z) const;
  void visit(Visitor& v) { v("weight", weight), v("bias", bias); }

  std::string kind;  ///< rms, layer, none
  GateOrder gate;
  int64_t group;           ///< channels that share statistics
  Parameter weight, bias;  ///< (width), where there is a norm; the bias of layer alone
};

/// The block of Mamba-2 (Dao & Gu 2024, arXiv:2405.21060), H = expand · d_model / head_dim heads:
///   (z, xbc, δ) = W_in u,  (x, b, c) = silu(conv(xbc)),  Δ = softplus(δ + dt_bias)
///   y = ssd(x, Δ, −exp(A_log), b, c) + d x,  out = W_out norm(y ⊙ silu(z))
/// The gated norm's order, kind and groups are options: o.mamba.gate, .norm, .norm_groups.
struct Mamba2 {
  explicit Mamba2(const LanguageModelOptions& o);
  Tensor operator()(const Tensor& u, MixerState* state = nullptr) const;
  void visit(Visitor& v) {
    v("dt_bias", dt_bias), v("A_log", a_log), v("D", d), v("in_proj", in_proj);
    v("conv1d", conv1d), v("norm", norm), v("out_proj", out_proj);
  }

  MambaOptions options;
  int64_t d_inner, d_state, n_heads;
  Parameter dt_bias, a_log, d;  ///< (H) each
  Linear in_proj;
  ShortConv conv1d;
  BlockNorm norm;
  Linear out_proj;
};

/// The block of Mamba-3 with one input and one output a head (Lahoti et al. 2026,
/// arXiv:2603.15569): no convolution; a state that turns, fades as the token says, and takes in
/// each token by the trapezoidal rule, half of it now and half with the next one:
///   (z, x, b, c, δ, α, τ, φ) = W_in u,  Δ = softplus(δ + dt_bias),  λ = sigmoid(τ)
///   a = −max(1 + α, 1e-4) for α ≥ 0, −max(1 / (1 − α), 1e-4) below,  θ_t = θ_{t−1} + π tanh(φ) Δ
///   b ← rotate(rms_norm(b) + B_bias, θ), c ← rotate(rms_norm(c) + C_bias, θ), for each head
///   S_t = e^{Δ_t a_t} (S_{t−1} + (1 − λ_t) Δ_t x_{t−1} b_{t−1}ᵀ) + λ_t Δ_t x_t b_tᵀ
///   y_t = S_t c_t + d x_t,  out = W_out (y ⊙ silu(z))
/// The first rope_fraction of b and c turn, by pairs of neighbours. A gated norm (o.mamba.norm)
/// stands before the gate and takes each head for itself, where asked for. Between the projections
/// everything is float32 (float64 for float64), under Autocast too.
struct Mamba3 {
  explicit Mamba3(const LanguageModelOptions& o);
  Tensor operator()(const Tensor& u, MixerState* state = nullptr) const;
  void visit(Visitor& v) {
    v("dt_bias", dt_bias), v("B_bias", b_bias), v("C_bias", c_bias), v("D", d);
    v("in_proj", in_proj), v("B_norm.weight", b_norm), v("C_norm.weight", c_norm);
    v("norm", norm), v("out_proj", out_proj);
  }

  MambaOptions options;
  int64_t d_inner, d_state, n_heads, n_angles;
  Parameter dt_bias, d;      ///< (H) each
  Parameter b_bias, c_bias;  ///< (H, 1, N), as the reference with one input a head has them
  Parameter b_norm, c_norm;  ///< (N)
  Linear in_proj;
  BlockNorm norm;
  Linear out_proj;

 private:
  /// y (B, T, H, P) without the gate; tensors of one dtype, x (B, T, H, P), b and c (B, T, G, N),
  /// the others (B, T, ·).
  Tensor recurrence(const Tensor& x, const Tensor& b, const Tensor& c, const Tensor& delta,
                    const Tensor& alpha, const Tensor& lambda, const Tensor& phi,
                    MixerState* state) const;
};

}  // namespace norma::nn
