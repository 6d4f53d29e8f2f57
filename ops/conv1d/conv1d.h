#pragma once

#include "norma/core/op.h"
#include "norma/core/tensor.h"

namespace norma {

enum class Conv1dActivation { identity, silu };
struct Conv1dOptions {
  Conv1dActivation activation = Conv1dActivation::silu;
  bool final_state = false;  ///< whether the result holds the state to go on from
  bool operator==(const Conv1dOptions&) const = default;
};
/// What may be absent: a bias, and the inputs before the first.
struct Conv1dInputs {
  std::optional<Tensor> b = none, state = none;
};
struct Conv1dResult {
  Tensor y;
  std::optional<Tensor> state;
};

/// Causal convolution along time, each channel by itself, as Mamba uses it (Gu & Dao 2023,
/// arXiv:2312.00752):
///   p_t = b + Σ_k w_k ⊙ u_{t+k},  y = silu(p) or p,  k = 0 … K − 1
/// where u is x behind K − 1 earlier inputs: `state`, or zeros.
///   dp = dy ⊙ silu′(p),  du_s = Σ_k w_k ⊙ dp_{s−k},  dw_k = Σ dp_t ⊙ u_{t+k},  db = Σ dp
/// x (B, T, C), any strides; a dense last dimension is read where it lies. w (C, K) and b (C): any
/// floating dtypes. state (B, K − 1, C) of x's dtype; under `final_state` the last K − 1 rows of u
/// come back, for the next call. y is dense, of x's dtype; sums are float32 (float64 for float64).
/// Throws ShapeError or DTypeError where arguments do not fit.
Conv1dResult causal_conv1d(const Tensor& x, const Tensor& w, const Conv1dInputs& more = {},
                           const Conv1dOptions& options = {});

struct CausalConv1d {
  using Options = Conv1dOptions;
  static constexpr std::string_view name = "causal_conv1d";
  static void check(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b,
                    const std::optional<Tensor>& state, const Options&);
  static Conv1dResult define(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b,
                             const std::optional<Tensor>& state, const Options&);
  static Conv1dResult forward(Context&, const Tensor& x, const Tensor& w,
                              const std::optional<Tensor>& b, const std::optional<Tensor>& state,
                              const Options&);
  struct Grads {
    Tensor dx, dw;
    std::optional<Tensor> db, dstate;
  };
  static Grads backward(Context&, const std::optional<Tensor>& dy,
                        const std::optional<Tensor>& dlast_state);
};
struct CausalConv1dBackward {
  using Options = Conv1dOptions;
  using Grads = CausalConv1d::Grads;
  static constexpr std::string_view name = "causal_conv1d_backward";
  static Grads define(const Tensor& dy, const std::optional<Tensor>& dlast_state, const Tensor& x,
                      const Tensor& w, const std::optional<Tensor>& b,
                      const std::optional<Tensor>& state, const Options&);
  static Grads forward(Context&, const Tensor& dy, const std::optional<Tensor>& dlast_state,
                       const Tensor& x, const Tensor& w, const std::optional<Tensor>& b,
                       const std::optional<Tensor>& state, const Options&);
};

}  // namespace norma
