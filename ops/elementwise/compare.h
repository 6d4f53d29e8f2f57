#pragma once

#include "norma/ops/elementwise/binary.h"

namespace norma {

// Comparisons, broadcast like arithmetic: a bool tensor without gradient. Any one dtype; NaN equals
// nothing. (Operators on two tensors, so that == of handles cannot be meant, are left out.)

Tensor equal(const Operand& a, const Operand& b);
Tensor not_equal(const Operand& a, const Operand& b);
Tensor less(const Operand& a, const Operand& b);
Tensor less_equal(const Operand& a, const Operand& b);
Tensor greater(const Operand& a, const Operand& b);
Tensor greater_equal(const Operand& a, const Operand& b);
inline Tensor operator<(const Tensor& a, const Operand& b) { return less(a, b); }
inline Tensor operator<=(const Tensor& a, const Operand& b) { return less_equal(a, b); }
inline Tensor operator>(const Tensor& a, const Operand& b) { return greater(a, b); }
inline Tensor operator>=(const Tensor& a, const Operand& b) { return greater_equal(a, b); }

/// a where condition, else b; all three broadcast. condition bool, a and b of one dtype. Values not
/// chosen leave no trace: no NaN and no gradient of theirs.
Tensor where(const Tensor& condition, const Operand& a, const Operand& b);

struct CompareOptions {
  Comparison comparison = Comparison::equal;
  bool operator==(const CompareOptions&) const = default;
};
struct Compare {
  using Options = CompareOptions;
  static constexpr std::string_view name = "compare";
  static TensorSpec check(const Tensor& a, const Tensor& b, const Options&);
  static Tensor forward(Context&, const Tensor& a, const Tensor& b, const Options&);
};

struct WhereGrads {
  std::optional<Tensor> dcondition, da, db;
};
struct Where {
  static constexpr CastRule cast_rule = CastRule::widest;
  static constexpr std::string_view name = "where";
  static TensorSpec check(const Tensor& condition, const Tensor& a, const Tensor& b);
  static Tensor forward(Context&, const Tensor& condition, const Tensor& a, const Tensor& b);
  static WhereGrads backward(Context&, const Tensor& dy);
};

}  // namespace norma
