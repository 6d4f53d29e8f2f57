#pragma once

#include "norma/core/op.h"
#include "norma/core/tensor.h"

namespace norma {

// Over dimension `dim` of x, floating, any strides; the result is dense. The largest element is
// subtracted first, so that nothing overflows. A row of −∞ alone has no distribution: softmax and
// log_softmax give NaN there, logsumexp −∞. A NaN or +∞ makes its row NaN.

/// y = e^(x − lse(x)); gradient y ⊙ (dy − Σ y ⊙ dy).
Tensor softmax(const Tensor& x, int dim);
/// y = x − lse(x); gradient dy − e^y Σ dy.
Tensor log_softmax(const Tensor& x, int dim);
/// ln Σ eˣ; gradient softmax(x) dy.
Tensor logsumexp(const Tensor& x, int dim, KeepDim keep = KeepDim::no);

// The ops themselves go along the last dimension.

struct Softmax {
  static constexpr std::string_view name = "softmax";
  static Tensor define(const Tensor& x);
  static Tensor forward(Context&, const Tensor& x);
  static Tensor backward(Context&, const Tensor& dy);
};
struct SoftmaxBackward {
  static constexpr std::string_view name = "softmax_backward";
  static Tensor define(const Tensor& dy, const Tensor& y);
  static Tensor forward(Context&, const Tensor& dy, const Tensor& y);
};
struct LogSoftmax {
  static constexpr std::string_view name = "log_softmax";
  static constexpr CastRule cast_rule = CastRule::float32_;
  static Tensor define(const Tensor& x);
  static Tensor forward(Context&, const Tensor& x);
  static Tensor backward(Context&, const Tensor& dy);
};
struct LogSoftmaxBackward {
  static constexpr std::string_view name = "log_softmax_backward";
  static Tensor define(const Tensor& dy, const Tensor& y);
  static Tensor forward(Context&, const Tensor& dy, const Tensor& y);
};
/// Keeps the last dimension with size 1.
struct LogSumExp {
  static constexpr std::string_view name = "logsumexp";
  static constexpr CastRule cast_rule = CastRule::float32_;
  static Tensor define(const Tensor& x);
  static Tensor forward(Context&, const Tensor& x);
  static Tensor backward(Context&, const Tensor& dy);
};

}  // namespace norma
