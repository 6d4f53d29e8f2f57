#pragma once

#include "norma/core/op.h"
#include "norma/core/random.h"
#include "norma/core/tensor.h"

namespace norma {

struct AttentionOptions {
  bool causal = true;  ///< query t of T sees the first S − T + t + 1 of S keys
  double scale = 0;    ///< of the scores; 0: 1/√D
  double p = 0;        ///< dropout's, on the probabilities; rounded to 1/65536
  RandomKey key = {};  ///< of its mask; drawn anew by scaled_dot_product_attention
  bool operator==(const AttentionOptions&) const = default;
};

/// Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762), for each head:
///   y = (softmax(scale · q kᵀ + mask) ⊙ m) v,  m = 1, or with dropout 0 or 1/(1 − p)
/// q (B, H, T, D), k and v (B, H_kv, S, D) with H_kv dividing H: H / H_kv heads share keys and
/// values (Ainslie et al. 2023, arXiv:2305.13245). Floating, one dtype, any strides whose last is 1
/// (others are copied). Fused: the scores are made block by block (Dao et al. 2022,
/// arXiv:2205.14135), the T × S matrix is never stored, and backward makes them again from lse, one
/// number a query; the mask of dropout is drawn again too. y lies in memory as (B, T, H, D), so
/// that y.transpose(1, 2) is dense. On a GPU the half types' products run on tensor cores with
/// float32 sums, float32's and float64's in their own arithmetic, and D may be at most 256. Where
/// there is no key (S = 0) y is 0. Throws ShapeError, DTypeError or ValueError where arguments do
/// not fit, and for causal with T > S.
Tensor scaled_dot_product_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                    const AttentionOptions& options = {});

struct AttentionResult {
  Tensor y;
  Constant lse;  ///< (B, H, T)
};
struct AttentionGrads {
  Tensor dq, dk, dv;
};
struct Attention {
  using Options = AttentionOptions;
  static constexpr std::string_view name = "attention";
  static constexpr CastRule cast_rule = CastRule::low;
  static void check(const Tensor& q, const Tensor& k, const Tensor& v, const Options&);
  static AttentionResult define(const Tensor& q, const Tensor& k, const Tensor& v, const Options&);
  static AttentionResult forward(Context&, const Tensor& q, const Tensor& k, const Tensor& v,
                                 const Options&);
  static AttentionGrads backward(Context&, const std::optional<Tensor>& dy,
                                 const std::optional<Tensor>&);
};
struct AttentionBackwardOptions : AttentionOptions {
  bool saved = false;  ///< all but dy comes from what a node of this sweep saved

  AttentionBackwardOptions() = default;
  AttentionBackwardOptions(const AttentionOptions& o, bool all_saved = false)  // NOLINT
      : AttentionOptions(o), saved(all_saved) {}
  bool operator==(const AttentionBackwardOptions&) const = default;
};
///   p = softmax(…),  dv = (p ⊙ m)ᵀ dy,  dp = m ⊙ (dy vᵀ),  ds = p ⊙ (dp − Σ_keys p ⊙ dp)
///   dq = scale · ds k,  dk = scale · dsᵀ q
/// where Σ_keys p ⊙ dp = Σ dy ⊙ y, so that one pass over the keys is enough.
struct AttentionBackward {
  using Options = AttentionBackwardOptions;
  static constexpr std::string_view name = "attention_backward";
  static AttentionGrads define(const Tensor& dy, const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& y, const Tensor& lse, const Options&);
  static AttentionGrads forward(Context&, const Tensor& dy, const Tensor& q, const Tensor& k,
                                const Tensor& v, const Tensor& y, const Tensor& lse,
                                const Options&);
};

}  // namespace norma
