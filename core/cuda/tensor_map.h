#pragma once

#include <cuda.h>

#include <array>
#include <cstdint>

#include "norma/core/dtype.h"

namespace norma::detail {

/// What the copy engine is told of a four-dimensional tensor, fastest dimension first and dense:
/// sizes and strides in elements (strides[0] is 1), and the box that one copy takes, of 64 half
/// type elements a row, laid with the 128-byte swizzle. Strides and address must be multiples of 16
/// bytes. A kernel takes it by value as a __grid_constant__.
CUtensorMap tensor_map(DType dtype, const void* data, const std::array<int64_t, 4>& sizes,
                       const std::array<int64_t, 4>& strides, int box_rows);

}  // namespace norma::detail
