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

/// A warp's 16 rows of a state, or of anything of kN columns, rounded, into panels.
template <class T, int kN>
__device__ __forceinline__ void put_rows(T* panels, int row, const float (&v)[kN / 2]) {
#pragma unroll
  for (int n = 0; n < kN; n += 16) {
    uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = pack_pair<T>(v[n / 2 + i * 2], v[n / 2 + i * 2 + 1]);
    store_block(panels + n / 64 * kPanel, row, n % 64, pairs);
  }
}
/// A warpgroup: a panel's rows times factor(row) into another one.
template <class T, class F>
__device__ __forceinline__ void scale_panel(T* to, const T* from, const F& factor) {
#pragma unroll
  for (int i = int(threadIdx.x) % kGroup; i < kPanel / 8; i += kGroup) {
    const float f = factor(i / 8);
    const uint4 v = reinterpret_cast<const uint4*>(from)[i];
    const auto scaled = [f](uint32_t pair) {
      const Pair p = unpack<T>(pair);
      return pack_pair<T>(p.low * f, p.high * f);
    };
    reinterpret_cast<uint4*>(to)[i] =
        make_uint4(scaled(v.x), scaled(v.y), scaled(v.z), scaled(v.w));
  }
}

/// Where a thread's number i of a (64, kN) product lies in it, from its first row and column on.
template <int kN>
__device__ __forceinline__ int place_of(int i) {
  return i / 2 % 2 * 8 * kN + i / 4 * 8 + i % 2;
}

/// Whether the copy engine takes these strides.
template <class T>
bool is_steady(const Sequence<const T>& s, const Sizes& size) {
  return (size.batch == 1 || s.batch_stride > 0) && (size.length == 1 || s.row_stride > 0);
}
/// Whether this GPU has these kernels' instructions, and the copy engine takes all these tensors.
template <class... S>
bool runs_on_hopper(Cuda on, const Sizes& size, const S&... sequences) {
  return detail::cuda_is_hopper(on.device) && (is_steady(sequences, size) && ...);
}
/// A block on each of 132 multiprocessors, if it takes segments, where `beside` blocks have all of
/// time: all but the last segment are read twice. The same on any GPU, for its bits.
inline Segments segments_of(const Sizes& size, int64_t beside) {
  return Segments(size, int64_t{132} / beside);
}
/// Of a (B, T, parts, columns) tensor, a chunk's rows at once.
template <class T>
CUtensorMap map_of(const Sequence<const T>& from, const Sizes& s, int parts, int columns) {
  const std::array<int64_t, 4> sizes{columns, s.length, parts, s.batch};
  const std::array<int64_t, 4> strides{1, from.row_stride, columns, from.batch_stride};
  return detail::tensor_map(dtype_of<T>, from.data, sizes, strides, kQ);
}

}  // namespace norma::ssd_cuda
