#pragma once

#include <array>
#include <cstdint>

#include "norma/core/parallel.h"
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

inline constexpr int64_t kPieceGrain = 32768;  // elements a task: 10 µs, well above a wake-up

/// Calls body(row offsets, first column, count) on several threads, for pieces of each long row or
/// for several short rows a task.
template <int N, class Body>
void for_pieces(const StridedLoop<N>& loop, const Body& body) {
  const int64_t rows = loop.rows(), length = loop.row_length();
  if (rows == 0 || length == 0) return;
  if (length >= kPieceGrain) {
    const Split pieces = split(length, kPieceGrain);
    parallel_for(rows * pieces.blocks, [&](int64_t task) {
      const int64_t b = task % pieces.blocks;
      body(loop.row_offsets(task / pieces.blocks), pieces.begin(b),
           pieces.end(b) - pieces.begin(b));
    });
  } else {
    const Split pieces = split(rows, kPieceGrain / length);
    parallel_for(pieces.blocks, [&](int64_t b) {
      for (int64_t r = pieces.begin(b); r < pieces.end(b); ++r)
        body(loop.row_offsets(r), int64_t{0}, length);
    });
  }
}

}  // namespace norma::detail
