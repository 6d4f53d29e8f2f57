#pragma once

#include <algorithm>

#include "norma/core/cuda/stages.cuh"
#include "norma/core/cuda/tensor_map.h"
#include "norma/core/cuda/wgmma.cuh"
#include "norma/ops/attention/tiles.cuh"

namespace norma::attention {

// What Hopper's kernels share (after FlashAttention-3, Shah et al. 2024, arXiv:2407.08608). A block
// is three warpgroups: the first loads, by one thread and the copy engine, through a ring of
// stages; the others compute, 64 rows of a tile of 128 each, and take turns: while one waits for
// tensor cores the other has its probabilities to make. One block a multiprocessor stays for the
// whole grid's work, so that the next tile's loads come under the end of the one before.

/// A computing thread's rows are MmaTile's: the loading warpgroup comes first, therefore less 64.
using Lanes = MmaTile<BFloat16, 64>;
inline constexpr int kLoaderRows = 64;
__device__ __forceinline__ int tile_row(int i) { return Lanes::row(i) - kLoaderRows; }
/// The first row of this thread's warpgroup.
__device__ __forceinline__ int group_row() { return threadIdx.x / kGroup * 64 - kLoaderRows; }

/// The order of a grid's tiles: those that take longest first, within as many heads as the second
/// cache holds; every other round of blocks runs backwards, so that no block has all the long ones.
struct Schedule {
  int heads, tiles, section;  ///< section: heads that share the cache

  struct Item {
    int head, level;  ///< level 0 takes longest
  };
  __device__ int64_t count() const { return int64_t{heads} * tiles; }
  __device__ int64_t index(int turn) const {
    const int64_t round = int64_t{turn} * gridDim.x;
    return round + (turn % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
  }
  __device__ Item item(int64_t index) const {
    const int whole = section * tiles, first = static_cast<int>(index / whole) * section;
    const int here = min(section, heads - first), rest = static_cast<int>(index % whole);
    return {first + rest % here, rest / here};
  }
};
inline Schedule schedule(int64_t heads, int64_t length, int64_t bytes_of_head) {
  constexpr int64_t kCache = 24 << 20;
  const int64_t section =
      std::clamp<int64_t>(kCache / std::max<int64_t>(bytes_of_head, 1), 1, heads);
  return {int(heads), int(ceil_div(length, int64_t{kTileRows})), int(section)};
}

/// 64 columns of v, or all, as the left operand of a product: 16 columns an array.
template <class T, int kColumns>
__device__ __forceinline__ void to_operand(uint32_t (&p)[kColumns / 16][4],
                                           const float (&v)[kColumns / 2]) {
#pragma unroll
  for (int k = 0; k < kColumns / 16; ++k)
#pragma unroll
    for (int r = 0; r < 4; ++r) p[k][r] = pack_pair<T>(v[8 * k + 2 * r], v[8 * k + 2 * r + 1]);
}

/// d = a bᵀ over kHead columns: 64 rows of a from `row`, kN rows of b.
template <class T, int kN, int kHead>
__device__ __forceinline__ void multiply_rows(float (&d)[kN / 2], const T* a, int a_rows, int row,
                                              const T* b) {
#pragma unroll
  for (int c = 0; c < kHead; c += 16)
    wgmma_rows<T, kN>(d, rows_of(a, a_rows, row, c), rows_of(b, kN, 0, c), c > 0);
}
/// d += p b for kK rows of b, or d = p b.
template <class T, int kHead, int kK>
__device__ __forceinline__ void add_product(float (&d)[kHead / 2], uint32_t (&p)[kK / 16][4],
                                            const T* b, bool add = true) {
#pragma unroll
  for (int k = 0; k < kK; k += 16)
    wgmma_registers<T, kHead, true>(d, p[k / 16], columns_of(b, kK, k), add || k > 0);
}

/// 16 columns from c of this warp's 16 rows of a tile of kTileRows, as a left operand.
template <class T>
__device__ __forceinline__ void load_operand(uint32_t (&a)[4], const T* panels, int c) {
  const int lane = threadIdx.x % kWarpSize;
  const int row = Lanes::first_row() - kLoaderRows + lane % 16;
  const int piece = (c % 64 / 8 + lane / 16) ^ (row % 8);  // the copy engine's swizzle
  load_matrices(a, panels + c / 64 * kTileRows * 64 + row * 64 + piece * 8);
}

/// Copies kRows rows of one head, in panels of 64 columns.
template <int kRows, int kHead, class T>
__device__ __forceinline__ void copy_rows(T* to, const CUtensorMap& map, SharedBarrier& done,
                                          int first, int head, int batch) {
#pragma unroll
  for (int c = 0; c < kHead; c += 64) copy_box(to + c * kRows, map, done, c, first, head, batch);
}

/// Writes row i of a thread's sums, times `factor`, 16 bytes at a time. All lanes of a warp call
/// it.
template <class T, int kHead>
__device__ void store_sums(T* to, const float (&v)[kHead / 2], int i, float factor, int dim,
                           bool inside) {
#pragma unroll
  for (int c = 0; c < kHead / 8; c += 4) {
    uint32_t w[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int at = 4 * (c + j) + 2 * i;
      w[j] = pack_pair<T>(v[at] * factor, v[at + 1] * factor);
    }
    transpose_quad(w);
    const int column = 8 * (c + static_cast<int>(threadIdx.x % 4));
    if (inside && column < dim)
      *reinterpret_cast<uint4*>(to + column) = make_uint4(w[0], w[1], w[2], w[3]);
  }
}

template <class Byte>
CUtensorMap map_of(const BasicView<Byte>& v, int box_rows) {
  return detail::tensor_map(v.dtype, v.data, {v.shape[3], v.shape[2], v.shape[1], v.shape[0]},
                            {1, v.strides[2], v.strides[1], v.strides[0]}, box_rows);
}

/// Whether Hopper's kernels can run: where they are compiled for and what the copy engine reads.
template <class... Views>
bool fits_hopper(const AttentionSettings& settings, const ConstView& q, const ConstView& k,
                 const Views&... views) {
  const auto is_steady = [](const auto& v) {
    for (int d = 0; d < 3; ++d)
      if (v.shape[d] > 1 && v.strides[d] <= 0) return false;
    return true;
  };
  return size_of(q.dtype) == 2 && detail::properties().major == 9 && q.shape[3] <= 128 &&
         q.shape[3] % 8 == 0 && q.shape.numel() > 0 && k.shape.numel() > 0 && settings.scale > 0 &&
         have_wide_rows(q, k, views...) && is_steady(q) && is_steady(k) &&
         (is_steady(views) && ...);
}

}  // namespace norma::attention
