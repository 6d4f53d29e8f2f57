#pragma once

#include "norma/core/op.h"
#include "norma/core/tensor.h"
#include "norma/ops/elementwise/kernels.h"

namespace norma {

// Functions of one tensor, element by element: y has x's shape, dtype and device, and is dense. x
// has any strides. DTypeError for an integer x, except where a comment says "any dtype but bool".
// Results of exp below the smallest normal number are 0, and log takes a subnormal x for that
// number.

Tensor neg(const Tensor& x);         ///< −x; any dtype but bool
Tensor abs(const Tensor& x);         ///< |x|, gradient dy · sign(x); any dtype but bool
Tensor sign(const Tensor& x);        ///< −1, 0 or 1, NaN for NaN, gradient 0; any dtype but bool
Tensor square(const Tensor& x);      ///< x², gradient 2 x dy; any dtype but bool
Tensor reciprocal(const Tensor& x);  ///< y = 1/x, gradient −y² dy
Tensor sqrt(const Tensor& x);        ///< y = √x, gradient dy / 2y
Tensor rsqrt(const Tensor& x);       ///< y = 1/√x, gradient −y³ dy / 2
Tensor exp(const Tensor& x);         ///< y = eˣ, gradient y dy
Tensor expm1(const Tensor& x);       ///< y = eˣ − 1 without cancellation, gradient (y + 1) dy
Tensor neg_exp(const Tensor& x);     ///< y = −eˣ, gradient y dy
Tensor log(const Tensor& x);         ///< ln x, gradient dy / x
Tensor log1p(const Tensor& x);       ///< ln(1 + x) without cancellation, gradient dy / (1 + x)
Tensor sin(const Tensor& x);         ///< gradient cos(x) dy
Tensor cos(const Tensor& x);         ///< gradient −sin(x) dy
Tensor erf(const Tensor& x);  ///< 2/√π ∫₀ˣ e^(−t²) dt, gradient 2/√π e^(−x²) dy
/// min(max(x, low), high), gradient dy inside, at a bound half of it; any dtype but bool.
Tensor clamp(const Tensor& x, double low, double high);

enum class Saves { nothing, x, y };
enum class Takes { floating, numbers };

/// The one forward of all of them.
Tensor unary_forward(Context& ctx, const Tensor& x, UnaryFunction function, Saves saves,
                     Takes takes);

/// What such ops share. Each adds its name and its gradient.
template <UnaryFunction kFunction, Saves kSaves, Takes kTakes = Takes::floating>
struct Unary {
  static Tensor forward(Context& ctx, const Tensor& x) {
    return unary_forward(ctx, x, kFunction, kSaves, kTakes);
  }
};

struct Neg : Unary<UnaryFunction::neg, Saves::nothing, Takes::numbers> {
  static constexpr std::string_view name = "neg";
  static Tensor backward(Context&, const Tensor& dy);
};
struct Abs : Unary<UnaryFunction::abs, Saves::x, Takes::numbers> {
  static constexpr std::string_view name = "abs";
  static Tensor backward(Context&, const Tensor& dy);
};
struct Sign : Unary<UnaryFunction::sign, Saves::nothing, Takes::numbers> {
  static constexpr std::string_view name = "sign";
  static Tensor backward(Context&, const Tensor& dy);
};
struct Square : Unary<UnaryFunction::square, Saves::x, Takes::numbers> {
  static constexpr std::string_view name = "square";
  static Tensor backward(Context&, const Tensor& dy);
};
struct Reciprocal : Unary<UnaryFunction::reciprocal, Saves::y> {
  static constexpr std::string_view name = "reciprocal";
  static Tensor backward(Context&, const Tensor& dy);
};
struct Sqrt : Unary<UnaryFunction::sqrt, Saves::y> {
  static constexpr std::string_view name = "sqrt";
  static Tensor backward(Context&, const Tensor& dy);
};
struct Rsqrt : Unary<UnaryFunction::rsqrt, Saves::y> {
  static constexpr std::string_view name = "rsqrt";
  static Tensor backward(Context&, const Tensor& dy);
};
struct Exp : Unary<UnaryFunction::exp, Saves::y> {
  static constexpr std::string_view name = "exp";
  static Tensor backward(Context&, const Tensor& dy);
};
struct Expm1 : Unary<UnaryFunction::expm1, Saves::y> {
  static constexpr std::string_view name = "expm1";
  static Tensor backward(Context&, const Tensor& dy);
};
struct NegExp : Unary<UnaryFunction::neg_exp, Saves::y> {
  static constexpr std::string_view name = "neg_exp";
  static Tensor backward(Context&, const Tensor& dy);
};
struct Log : Unary<UnaryFunction::log, Saves::x> {
  static constexpr std::string_view name = "log";
  static Tensor backward(Context&, const Tensor& dy);
};
struct Log1p : Unary<UnaryFunction::log1p, Saves::x> {
  static constexpr std::string_view name = "log1p";
  static Tensor backward(Context&, const Tensor& dy);
};
struct Sin : Unary<UnaryFunction::sin, Saves::x> {
  static constexpr std::string_view name = "sin";
  static Tensor backward(Context&, const Tensor& dy);
};
struct Cos : Unary<UnaryFunction::cos, Saves::x> {
  static constexpr std::string_view name = "cos";
  static Tensor backward(Context&, const Tensor& dy);
};
struct Erf : Unary<UnaryFunction::erf, Saves::x> {
  static constexpr std::string_view name = "erf";
  static Tensor backward(Context&, const Tensor& dy);
};

}  // namespace norma
