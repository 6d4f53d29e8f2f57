#pragma once

#include <array>
#include <cstdint>

#include "norma/core/shape.h"

namespace norma::detail {

/// N equally shaped strided arrays with neighbouring dimensions merged wherever every array allows
/// it, so that a dense operand of any rank becomes one long row. The last dimension is the row.
template <int N>
struct StridedLoop {
  Shape shape;
  std::array<Shape, N> strides;

  StridedLoop(const Shape& full, const std::array<Shape, N>& full_strides) {
    for (int i = 0; i < full.dim(); ++i) {
      if (full[i] == 1) continue;
      if (shape.dim() > 0 && merges(full, full_strides, i)) {
        shape[shape.dim() - 1] *= full[i];
        for (int a = 0; a < N; ++a) strides[a][shape.dim() - 1] = full_strides[a][i];
      } else {
        shape.push_back(full[i]);
        for (int a = 0; a < N; ++a) strides[a].push_back(full_strides[a][i]);
      }
    }
    if (shape.dim() == 0) {
      shape.push_back(full.numel());  // 1, or 0 where a size is 0
      for (int a = 0; a < N; ++a) strides[a].push_back(1);
    }
  }

  int64_t row_length() const { return shape.back(); }
  int64_t row_stride(int array) const { return strides[array].back(); }
  int64_t rows() const {
    int64_t n = 1;
    for (int i = 0; i + 1 < shape.dim(); ++i) n *= shape[i];
    return n;
  }
  /// Where row r of each array begins, in elements.
  std::array<int64_t, N> row_offsets(int64_t r) const {
    std::array<int64_t, N> offsets{};
    for (int i = shape.dim() - 2; i >= 0; --i) {
      const int64_t index = r % shape[i];
      r /= shape[i];
      for (int a = 0; a < N; ++a) offsets[a] += index * strides[a][i];
    }
    return offsets;
  }

 private:
  bool merges(const Shape& full, const std::array<Shape, N>& full_strides, int i) const {
    for (int a = 0; a < N; ++a)
      if (strides[a].back() != full_strides[a][i] * full[i]) return false;
    return true;
  }
};

}  // namespace norma::detail
