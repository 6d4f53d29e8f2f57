#pragma once

#include "norma/core/random.h"
#include "norma/core/tensor.h"
#include "norma/ops/elementwise/binary.h"

namespace norma::testing {

/// Eighths from -1 to 7/8: both half types hold them, float32 sums of 2¹⁷ of their products, so
/// that any order of them has the same bits.
inline Tensor eighths(const Shape& shape, DType dtype) {
  return ((randint(0, 16, shape, int32) - 8).to(float32) * 0.125).to(dtype);
}
/// Whole numbers from -8 to 7: tf32 holds them, float32 their sums, so that nothing is rounded, and
/// nothing but the sign of a zero depends on the order.
inline Tensor whole(const Shape& shape) { return (randint(0, 16, shape, int32) - 8).to(float32); }
/// Values in float64: what a product's definition is worked out in.
inline Tensor wide(const Tensor& t) { return t.to(float64); }

}  // namespace norma::testing
