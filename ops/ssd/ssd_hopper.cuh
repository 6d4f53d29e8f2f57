#pragma once

#include <array>

#include "norma/core/cuda/runtime.h"
#include "norma/core/cuda/stages.cuh"
#include "norma/core/cuda/tensor_map.h"
#include "norma/core/cuda/wgmma.cuh"
#include "norma/ops/ssd/ssd_cuda.cuh"

namespace norma::ssd_cuda {

// What SSD's kernels for Hopper share. A warpgroup multiplies a chunk's 64 steps at once, and the
// copy engine brings them: a panel is 64 rows of 64 columns, 16 bytes of a row in an order of its
// own.

constexpr int kPanel = kQ * 64;

/// 16 bytes of a panel's row.
template <class T>
__device__ __forceinline__ T* piece_of(T* panel, int row, int piece) {
  return panel + row * 64 + (piece ^ row % 8) * 8;
}
/// 16 rows from `row` and 16 columns from `column` of a panel, as a left operand.
template <class T>
__device__ __forceinline__ void load_block(Block<T>& a, const T* panel, int row, int column) {
  const int lane = lane_of();
  ssd_cuda::load_matrices(a.r, piece_of(panel, row + lane % 16, column / 8 + lane / 16));
}
/// The same of the panel's transpose.
template <class T>
__device__ __forceinline__ void load_block_turned(Block<T>& a, const T* panel, int row,
                                                  int column) {
  const int lane = lane_of();
  ssd_cuda::load_matrices_turned(
      a.r, piece_of(panel, column + lane / 16 * 8 + lane % 8, row / 8 + lane / 8 % 2));
}
/// The other way: four pairs as load_block gives them.
template <class T>
__device__ __forceinline__ void store_block(T* panel, int row, int column,
                                            const uint32_t (&pairs)[4]) {
  const int lane = lane_of();
  store_matrices(piece_of(panel, row + lane % 16, column / 8 + lane / 16), pairs);
}

/// Whether the copy engine takes these strides.
template <class T>
bool is_steady(const Sequence<const T>& s, const Sizes& size) {
  return (size.batch == 1 || s.batch_stride > 0) && (size.length == 1 || s.row_stride > 0);
}
/// Of a (B, T, parts, columns) tensor, a chunk's rows at once.
template <class T>
CUtensorMap map_of(const Sequence<const T>& from, const Sizes& s, int parts, int columns) {
  const std::array<int64_t, 4> sizes{columns, s.length, parts, s.batch};
  const std::array<int64_t, 4> strides{1, from.row_stride, columns, from.batch_stride};
  return detail::tensor_map(dtype_of<T>, from.data, sizes, strides, kQ);
}

}  // namespace norma::ssd_cuda
