#pragma once

#include "norma/core/op.h"
#include "norma/core/tensor.h"

namespace norma {

/// Matrix products c = a b over the last two dimensions: a (…, n, k), b (…, k, m), c (…, n, m).
/// Leading dimensions broadcast as NumPy does. Transposed operands are read where they lie; others
/// whose last two strides are both above 1 are copied first. Floating, one dtype; the half types
/// are multiplied and summed in float32.
///   da = dc bᵀ,  db = aᵀ dc, each summed over what was broadcast
/// Throws ShapeError where the inner sizes differ, DTypeError where the dtypes do.
Tensor matmul(const Tensor& a, const Tensor& b);

/// y = x wᵀ + b: x (…, k), w (m, k) as PyTorch stores it, b (m) or none; y (…, m).
///   dx = dy w,  dw = dyᵀ x and db = Σ dy over all rows
Tensor linear(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b = none);

struct MatmulGrads {
  std::optional<Tensor> da, db;
};
struct Matmul {
  static constexpr std::string_view name = "matmul";
  static TensorSpec check(const Tensor& a, const Tensor& b);
  static Tensor forward(Context&, const Tensor& a, const Tensor& b);
  static MatmulGrads backward(Context&, const Tensor& dc);
};

struct LinearGrads {
  std::optional<Tensor> dx, dw, db;
};
struct Linear {
  static constexpr std::string_view name = "linear";
  static TensorSpec check(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b);
  static Tensor define(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b);
  static Tensor forward(Context&, const Tensor& x, const Tensor& w, const std::optional<Tensor>& b);
  static LinearGrads backward(Context&, const Tensor& dy);
};

}  // namespace norma
