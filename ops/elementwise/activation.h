#pragma once

#include "norma/ops/elementwise/unary.h"

namespace norma {

// Activations, element by element; x floating, any strides; y like x, dense. Each carries its
// definition, a kernel, and a gradient that is an op with both again.

Tensor tanh(const Tensor& x);      ///< gradient (1 − y²) dy
Tensor sigmoid(const Tensor& x);   ///< y = 1 / (1 + e^−x), gradient y (1 − y) dy
Tensor relu(const Tensor& x);      ///< max(x, 0), NaN for NaN; gradient dy where x > 0
Tensor softplus(const Tensor& x);  ///< ln(1 + eˣ), gradient sigmoid(x) dy
/// SiLU, also called swish: x · sigmoid(x) (Hendrycks & Gimpel 2016, arXiv:1606.08415).
Tensor silu(const Tensor& x);
/// GELU: x · Φ(x), Φ the normal distribution (Hendrycks & Gimpel 2016, arXiv:1606.08415).
Tensor gelu(const Tensor& x);
/// GELU's approximation: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
Tensor gelu_tanh(const Tensor& x);

struct Tanh : Unary<UnaryFunction::tanh, Saves::y> {
  static constexpr std::string_view name = "tanh";
  static Tensor backward(Context&, const Tensor& dy);
};
struct Sigmoid : Unary<UnaryFunction::sigmoid, Saves::y> {
  static constexpr std::string_view name = "sigmoid";
  static Tensor define(const Tensor& x);
  static Tensor backward(Context&, const Tensor& dy);
};
struct Relu : Unary<UnaryFunction::relu, Saves::x> {
  static constexpr std::string_view name = "relu";
  static Tensor define(const Tensor& x);
  static Tensor backward(Context&, const Tensor& dy);
};
struct Softplus : Unary<UnaryFunction::softplus, Saves::x> {
  static constexpr std::string_view name = "softplus";
  static Tensor define(const Tensor& x);
  static Tensor backward(Context&, const Tensor& dy);
};
struct Silu : Unary<UnaryFunction::silu, Saves::x> {
  static constexpr std::string_view name = "silu";
  static Tensor define(const Tensor& x);
  static Tensor backward(Context&, const Tensor& dy);
};
struct Gelu : Unary<UnaryFunction::gelu, Saves::x> {
  static constexpr std::string_view name = "gelu";
  static Tensor define(const Tensor& x);
  static Tensor backward(Context&, const Tensor& dy);
};
struct GeluTanh : Unary<UnaryFunction::gelu_tanh, Saves::x> {
  static constexpr std::string_view name = "gelu_tanh";
  static Tensor define(const Tensor& x);
  static Tensor backward(Context&, const Tensor& dy);
};

Tensor activation_backward(const Tensor& dy, const Tensor& saved, BinaryFunction function);

/// The gradients: of dy and the input x, or the output y.
template <BinaryFunction kFunction>
struct ActivationBackward {
  static Tensor forward(Context&, const Tensor& dy, const Tensor& saved) {
    return activation_backward(dy, saved, kFunction);
  }
};
struct TanhBackward : ActivationBackward<BinaryFunction::tanh_backward> {
  static constexpr std::string_view name = "tanh_backward";
  static Tensor define(const Tensor& dy, const Tensor& y);
};
struct SigmoidBackward : ActivationBackward<BinaryFunction::sigmoid_backward> {
  static constexpr std::string_view name = "sigmoid_backward";
  static Tensor define(const Tensor& dy, const Tensor& y);
};
struct ReluBackward : ActivationBackward<BinaryFunction::relu_backward> {
  static constexpr std::string_view name = "relu_backward";
  static Tensor define(const Tensor& dy, const Tensor& x);
};
struct SiluBackward : ActivationBackward<BinaryFunction::silu_backward> {
  static constexpr std::string_view name = "silu_backward";
  static Tensor define(const Tensor& dy, const Tensor& x);
};
struct GeluBackward : ActivationBackward<BinaryFunction::gelu_backward> {
  static constexpr std::string_view name = "gelu_backward";
  static Tensor define(const Tensor& dy, const Tensor& x);
};
struct GeluTanhBackward : ActivationBackward<BinaryFunction::gelu_tanh_backward> {
  static constexpr std::string_view name = "gelu_tanh_backward";
  static Tensor define(const Tensor& dy, const Tensor& x);
};

}  // namespace norma
