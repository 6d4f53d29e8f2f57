#pragma once

#include <cstdint>

#include "norma/core/view.h"

namespace norma {

/// Element i of a vector of int32 or int64. A branch that all threads take alike, instead of every
/// kernel twice.
__device__ __forceinline__ int64_t index_at(const ConstVec& v, int64_t i) {
  return v.dtype == int64 ? v.template at<int64_t>(i) : v.template at<int32_t>(i);
}

/// The same for element c of a row.
__device__ __forceinline__ int64_t index_at(const ConstRows& v, int64_t row, int64_t c) {
  return v.dtype == int64 ? v.template row<int64_t>(row)[c] : v.template row<int32_t>(row)[c];
}

}  // namespace norma
