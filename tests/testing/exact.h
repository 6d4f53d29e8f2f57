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
/// The same values in float64: what a product's definition is worked out in.
inline Tensor wide(const Tensor& t) { return t.to(float64); }

}  // namespace norma::testing
