#pragma once

#include "norma/core/op.h"
#include "norma/core/tensor.h"

namespace norma {

/// Matrix products c = a b over the last two dimensions: a (…, n, k), b (…, k, m), c (…, n, m).
/// Leading dimensions broadcast as NumPy does. Transposed operands are read where they lie; others
/// whose last two strides are both above 1 are copied first. Floating, one dtype; the half types
/// are multiplied and summed in float32 (on a GPU by tensor cores).
///   da = dc bᵀ,  db = aᵀ dc, each summed over what was broadcast
/// Throws ShapeError where the inner sizes differ, DTypeError where the dtypes do.
Tensor matmul(const Tensor& a, const Tensor& b);

/// y = x wᵀ + b: x (…, k), w (m, k) as PyTorch stores it, b (m) or none; y (…, m).
///   dx = dy w,  dw = dyᵀ x and db = Σ dy over all rows
/// One dtype; or w and b stay float32 beside an x of a half type: rounded to it, once for each
/// value they have, while their gradients are float32 as they come out of the sum.
Tensor linear(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b = none);

/// Whether a GPU may round the factors of float32 products to TensorFloat-32, 10 bits of
/// significand, for speed: for the whole process, off at first. The CPU never does.
void allow_tf32(bool on);
bool is_tf32_allowed();

struct MatmulGrads {
  std::optional<Tensor> da, db;
};
struct Matmul {
  static constexpr std::string_view name = "matmul";
  static constexpr CastRule cast_rule = CastRule::low;
  static TensorSpec check(const Tensor& a, const Tensor& b);
  static Tensor forward(Context&, const Tensor& a, const Tensor& b);
  static MatmulGrads backward(Context&, const Tensor& dc);
};

struct LinearGrads {
  std::optional<Tensor> dx, dw, db;
};
struct Linear {
  static constexpr std::string_view name = "linear";
  static constexpr CastRule cast_rule = CastRule::low;
  static constexpr uint32_t cast_arguments = 1;  // x: the weights' gradients shall be float32
  static TensorSpec check(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b);
  static Tensor define(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b);
  static Tensor forward(Context&, const Tensor& x, const Tensor& w, const std::optional<Tensor>& b);
  static LinearGrads backward(Context&, const Tensor& dy);
};

/// What linear's arguments get: dy (rows, m), x (rows, k). Small ones on a GPU in one launch. A GPU
/// adds dx to what has arrived of x's gradient already, in its memory and with one rounding.
struct LinearBackwardOptions {
  bool dx = true, dw = true, db = true;
  bool operator==(const LinearBackwardOptions&) const = default;
};
struct LinearBackward {
  using Options = LinearBackwardOptions;
  static constexpr std::string_view name = "linear_backward";
  static LinearGrads define(const Tensor& dy, const Tensor& x, const Tensor& w,
                            const std::optional<Tensor>& arrived, const Options&);
  static LinearGrads forward(Context&, const Tensor& dy, const Tensor& x, const Tensor& w,
                             const std::optional<Tensor>& arrived, const Options&);
};

/// dw = dyᵀ x and db = Σ dy over the rows, dy (rows, m), x (rows, k): on a GPU in one kernel.
struct LinearWeightOptions {
  DType dtype = float32;  ///< of both results: dy's own, or wider
  bool db = true;
  bool operator==(const LinearWeightOptions&) const = default;
};
struct LinearWeightGrads {
  Tensor dw;
  std::optional<Tensor> db;
};
struct LinearWeightBackward {
  using Options = LinearWeightOptions;
  static constexpr std::string_view name = "linear_weight_backward";
  static LinearWeightGrads define(const Tensor& dy, const Tensor& x, const Options&);
  static LinearWeightGrads forward(Context&, const Tensor& dy, const Tensor& x, const Options&);
};

}  // namespace norma
