#pragma once

#include "norma/core/op.h"
#include "norma/core/tensor.h"
#include "norma/ops/elementwise/kernels.h"

namespace norma {

/// An operand of arithmetic: a tensor, or a number that takes the other operand's dtype and device.
class Operand {
 public:
  Operand(const Tensor& tensor) : tensor_(&tensor) {}  // NOLINT: a Tensor argument is meant
  Operand(double number) : number_(number) {}          // NOLINT
  /// The tensor, or a 0-dim one of the number in the dtype and on the device of `other`.
  Tensor like(const Operand& other) const;

 private:
  const Tensor* tensor_ = nullptr;
  double number_ = 0;
};

// Arithmetic, element by element, broadcast as NumPy does: sizes are aligned at the last dimension;
// a missing one or a 1 repeats. Both operands have one dtype and device, any strides; the result is
// dense. Nothing is promoted: DTypeError where dtypes differ, ShapeError where sizes do not fit.

Tensor add(const Operand& a, const Operand& b);  ///< gradients dy, dy
Tensor sub(const Operand& a, const Operand& b);  ///< gradients dy, −dy
Tensor mul(const Operand& a, const Operand& b);  ///< gradients dy b, dy a
Tensor div(const Operand& a, const Operand& b);  ///< floating; gradients dy / b, −dy a / b²
/// aᵇ, floating; gradients dy b aᵇ⁻¹ and dy aᵇ ln a (0 where a = 0 and b ≥ 0, as PyTorch has it).
Tensor pow(const Operand& a, const Operand& b);
/// The smaller or larger; NaN where either is NaN. Equal operands share the gradient in halves.
Tensor minimum(const Operand& a, const Operand& b);
Tensor maximum(const Operand& a, const Operand& b);

Tensor operator-(const Tensor& x);
inline Tensor operator+(const Tensor& a, const Tensor& b) { return add(a, b); }
inline Tensor operator+(const Tensor& a, double b) { return add(a, b); }
inline Tensor operator+(double a, const Tensor& b) { return add(a, b); }
inline Tensor operator-(const Tensor& a, const Tensor& b) { return sub(a, b); }
inline Tensor operator-(const Tensor& a, double b) { return sub(a, b); }
inline Tensor operator-(double a, const Tensor& b) { return sub(a, b); }
inline Tensor operator*(const Tensor& a, const Tensor& b) { return mul(a, b); }
inline Tensor operator*(const Tensor& a, double b) { return mul(a, b); }
inline Tensor operator*(double a, const Tensor& b) { return mul(a, b); }
inline Tensor operator/(const Tensor& a, const Tensor& b) { return div(a, b); }
inline Tensor operator/(const Tensor& a, double b) { return div(a, b); }
inline Tensor operator/(double a, const Tensor& b) { return div(a, b); }

struct BinaryGrads {
  std::optional<Tensor> da, db;
};

TensorSpec check_binary(std::string_view name, const Tensor& a, const Tensor& b, bool floating);
Tensor binary_forward(Context& ctx, const Tensor& a, const Tensor& b, BinaryFunction function);

/// What these ops share. Each adds its name and its gradients.
template <class Op, BinaryFunction kFunction>
struct Binary {
  static constexpr CastRule cast_rule = CastRule::widest;
  static constexpr bool kFloating =
      kFunction == BinaryFunction::div || kFunction == BinaryFunction::pow;
  static TensorSpec check(const Tensor& a, const Tensor& b) {
    return check_binary(Op::name, a, b, kFloating);
  }
  static Tensor forward(Context& ctx, const Tensor& a, const Tensor& b) {
    if constexpr (kFunction != BinaryFunction::add && kFunction != BinaryFunction::sub)
      ctx.save(a, b);
    return binary_forward(ctx, a, b, kFunction);
  }
};
struct Add : Binary<Add, BinaryFunction::add> {
  static constexpr std::string_view name = "add";
  static BinaryGrads backward(Context&, const Tensor& dy);
};
struct Sub : Binary<Sub, BinaryFunction::sub> {
  static constexpr std::string_view name = "sub";
  static BinaryGrads backward(Context&, const Tensor& dy);
};
struct Mul : Binary<Mul, BinaryFunction::mul> {
  static constexpr std::string_view name = "mul";
  static BinaryGrads backward(Context&, const Tensor& dy);
};
struct Div : Binary<Div, BinaryFunction::div> {
  static constexpr std::string_view name = "div";
  static BinaryGrads backward(Context&, const Tensor& dy);
};
struct Pow : Binary<Pow, BinaryFunction::pow> {
  static constexpr std::string_view name = "pow";
  static BinaryGrads backward(Context&, const Tensor& dy);
};
struct Minimum : Binary<Minimum, BinaryFunction::minimum> {
  static constexpr std::string_view name = "minimum";
  static BinaryGrads backward(Context&, const Tensor& dy);
};
struct Maximum : Binary<Maximum, BinaryFunction::maximum> {
  static constexpr std::string_view name = "maximum";
  static BinaryGrads backward(Context&, const Tensor& dy);
};

}  // namespace norma
