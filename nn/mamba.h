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

/// The block of Mamba-2 (Dao & Gu 2024, arXiv:2405.21060), H = expand · d_model / head_dim heads:
///   (z, xbc, δ) = W_in u,  (x, b, c) = silu(conv(xbc)),  Δ = softplus(δ + dt_bias)
///   y = ssd(x, Δ, −exp(A_log), b, c) + d x,  out = W_out norm(y ⊙ silu(z))
/// The gated norm's order, kind and groups are options: o.mamba.gate, .norm, .norm_groups.
struct Mamba2 {
  explicit Mamba2(const LanguageModelOptions& o);
  Tensor operator()(const Tensor& u, MixerState* state = nullptr) const;
  void visit(Visitor& v) {
    v("dt_bias", dt_bias), v("A_log", a_log), v("D", d), v("in_proj", in_proj);
    v("conv1d", conv1d), v("norm.weight", norm_weight), v("norm.bias", norm_bias);
    v("out_proj", out_proj);
  }

  MambaOptions options;
  int64_t d_inner, d_state, n_heads;
  Parameter dt_bias, a_log, d;  ///< (H) each
  Linear in_proj;
  ShortConv conv1d;
  Parameter norm_weight, norm_bias;  ///< (E); the bias of layer alone
  Linear out_proj;

 private:
  Tensor gated(const Tensor& y, const Tensor& z) const;
};

}  // namespace norma::nn
