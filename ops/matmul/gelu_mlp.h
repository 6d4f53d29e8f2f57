#pragma once

#include "norma/core/op.h"
#include "norma/core/tensor.h"

namespace norma {

/// GPT-2's feed-forward layer: y = a w_outᵀ + b_out, a = gelu_tanh(u), u = x w_inᵀ + b_in;
/// x (…, d), w_in (d_ff, d), w_out (d_out, d_ff), biases (d_ff) and (d_out) or none.
///   da = dy w_out,  du = da ⊙ gelu_tanh′(u),  dx = du w_in
///   dw_out = dyᵀ a,  db_out = Σ dy,  dw_in = duᵀ x,  db_in = Σ du over all rows
/// On a GPU five matrix products do all of it: bias, activation, its derivative and the biases'
/// gradients are their epilogues. Backward keeps u and a. Floating; dtypes as for linear().
Tensor gelu_mlp(const Tensor& x, const Tensor& w_in, const std::optional<Tensor>& b_in,
                const Tensor& w_out, const std::optional<Tensor>& b_out);

struct GeluMlp {
  static constexpr std::string_view name = "gelu_mlp";
  static constexpr CastRule cast_rule = CastRule::low;
  static constexpr uint32_t cast_arguments = 1;
  static TensorSpec check(const Tensor& x, const Tensor& w_in, const std::optional<Tensor>& b_in,
                          const Tensor& w_out, const std::optional<Tensor>& b_out);
  static Tensor define(const Tensor& x, const Tensor& w_in, const std::optional<Tensor>& b_in,
                       const Tensor& w_out, const std::optional<Tensor>& b_out);
  static Tensor forward(Context&, const Tensor& x, const Tensor& w_in,
                        const std::optional<Tensor>& b_in, const Tensor& w_out,
                        const std::optional<Tensor>& b_out);
  static std::vector<Tensor> backward(Context&, const Tensor& dy);
};

struct GeluMlpBackwardOptions {
  bool dx = true, dw_in = true, db_in = true, dw_out = true, db_out = true;
  bool saved = false;  ///< all but dy comes from what a node of this sweep saved
  bool operator==(const GeluMlpBackwardOptions&) const = default;
};
struct GeluMlpGrads {
  std::optional<Tensor> dx, dw_in, db_in, dw_out, db_out;
};
/// u and a are hints: the definition computes them anew.
struct GeluMlpBackward {
  using Options = GeluMlpBackwardOptions;
  static constexpr std::string_view name = "gelu_mlp_backward";
  static GeluMlpGrads define(const Tensor& dy, const Tensor& x, const Tensor& w_in,
                             const std::optional<Tensor>& b_in, const Tensor& w_out,
                             const Tensor& u, const Tensor& a, const Options&);
  static GeluMlpGrads forward(Context&, const Tensor& dy, const Tensor& x, const Tensor& w_in,
                              const std::optional<Tensor>& b_in, const Tensor& w_out,
                              const Tensor& u, const Tensor& a, const Options&);
};

}  // namespace norma
