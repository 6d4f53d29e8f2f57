#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "norma/ops/elementwise/lanes32_cpu.h"

namespace norma::detail {

// The blocked product of Goto & van de Geijn (2008, doi:10.1145/1356052.1356053): B is packed once,
// in slivers as wide as the tile that the registers hold; each task packs its rows of A and runs
// the tile kernel over all slivers. Written in the compiler's vector types, so that one source
// serves every width; Eigen 3.4's kernel reached 69 % of the multiply-add peak here, and packed B
// in every task.

#if defined(__AVX512F__)
inline constexpr int kTileRows = 12;  // 24 of 32 registers accumulate
#elif defined(__AVX__)
inline constexpr int kTileRows = 6;  // 12 of 16
#else
inline constexpr int kTileRows = 4;  // 8 of 16
#endif
inline constexpr int kTileVectors = 2;
inline constexpr int64_t kDepth =
    512;  // elements of k at a time: A's sliver stays in the first cache

template <class T>
constexpr int kTileCols = kTileVectors* kVectorBytes / static_cast<int>(sizeof(T));

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/// One matrix among the batch.
template <class T>
struct Slab {
  const T* data;
  int64_t rows, cols, row_stride, col_stride;
};

/// kTileRows of A at depth p: packed, k × kTileRows, or as they lie where k is dense.
template <class T>
struct PackedRows {
  const T* data;
  T at(int i, int64_t p) const { return data[p * kTileRows + i]; }
};
template <class T>
struct PlainRows {
  const T* data;
  int64_t stride;
  // Three rows a pointer: the processor adds one index to an address, and has few registers.
  T at(int i, int64_t p) const { return (data + i / 3 * 3 * stride)[i % 3 * stride + p]; }
};

/// A tile of the product, kTileRows × kVectors vectors; b is packed k × kTileCols.
template <class T, int kVectors, class Rows>
void multiply_tile(int64_t k, const Rows a, const T* __restrict__ b, T* __restrict__ out) {
  constexpr int kWidth = VectorOf<T>::kWidth;
  Vector<T> sum[kTileRows][kVectors] = {};
  for (int64_t p = 0; p < k; ++p) {
    Vector<T> right[kVectors];
    for (int v = 0; v < kVectors; ++v)
      right[v] = *reinterpret_cast<const Vector<T>*>(b + v * kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i)
      for (int v = 0; v < kVectors; ++v) sum[i][v] += a.at(i, p) * right[v];
    b += kTileCols<T>;
  }
  for (int i = 0; i < kTileRows; ++i)
    for (int v = 0; v < kVectors; ++v)
      *reinterpret_cast<Vector<T>*>(out + i * kTileCols<T> + v * kWidth) = sum[i][v];
}

/// Where a product goes.
template <class T>
struct Target {
  T* data;
  int64_t cols, stride;
  const T* bias = nullptr;
  bool add = false;  ///< to what is there
};

/// c (+)= tile, plus the bias at the first depth.
template <class T, class Cols>
void store_tile(const T* __restrict__ tile, int64_t rows, Cols cols, T* __restrict__ c,
                int64_t stride, bool add, const T* __restrict__ bias) {
  for (int64_t i = 0; i < rows; ++i) {
    const T* from = tile + i * kTileCols<T>;
    T* to = c + i * stride;
    if (add) {
      for (int64_t j = 0; j < cols; ++j) to[j] += from[j];
    } else if (bias) {
      for (int64_t j = 0; j < cols; ++j) to[j] = from[j] + bias[j];
    } else {
      for (int64_t j = 0; j < cols; ++j) to[j] = from[j];
    }
  }
}

/// v[i][j] and v[j][i] exchanged: blocks of half the size, then of a quarter, …
template <class T, int kHalf = VectorOf<T>::kWidth / 2>
[[gnu::always_inline]] inline void transpose_lanes(Vector<T>* v) {
  constexpr int kWidth = VectorOf<T>::kWidth;
  if constexpr (kHalf > 0) {
    const auto exchange =
        []<int... kLane>(Vector<T> & a, Vector<T> & b, std::integer_sequence<int, kLane...>) {
      const Vector<T> first =
          __builtin_shufflevector(a, b, (kLane & kHalf ? kWidth + kLane - kHalf : kLane)...);
      b = __builtin_shufflevector(a, b, (kLane & kHalf ? kWidth + kLane : kLane + kHalf)...);
      a = first;
    };
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i)
      if (!(i & kHalf)) exchange(v[i], v[i + kHalf], std::make_integer_sequence<int, kWidth>{});
    transpose_lanes<T, kHalf / 2>(v);
  }
}

/// `width` neighbouring lines of a matrix, interleaved: out[p · kPadded + i] = line i at p. Beyond
/// the width anything: it meets only itself, and nobody keeps it.
template <int kPadded, class T>
void pack(const T* lines, int64_t line_stride, int64_t step, int64_t width, int64_t depth, T* out) {
  constexpr int kWidth = VectorOf<T>::kWidth;
  if (line_stride == 1) {
    if (width == kPadded)
      for (int64_t p = 0; p < depth; ++p)
        std::memcpy(out + p * kPadded, lines + p * step, kPadded * sizeof(T));
    else
      for (int64_t p = 0; p < depth; ++p) {
        for (int64_t i = 0; i < width; ++i) out[p * kPadded + i] = lines[p * step + i];
        for (int64_t i = width; i < kPadded; ++i) out[p * kPadded + i] = 0;
      }
    return;
  }
  int64_t first = 0;
  if (step == 1)
    for (; first + kWidth <= depth; first += kWidth)
      for (int64_t i = 0; i < kPadded; i += kWidth) {
        Vector<T> v[kWidth];
#pragma GCC unroll 16
        for (int64_t j = 0; j < kWidth; ++j)
          v[j] = *reinterpret_cast<const Vector<T>*>(
              lines + std::min(i + j, width - 1) * line_stride + first);
        transpose_lanes<T>(v);
#pragma GCC unroll 16
        for (int64_t p = 0; p < kWidth; ++p) {
          T* to = out + (first + p) * kPadded + i;
          // A last part of a vector may spill where the next p is still to be written.
          const bool spills = kPadded < kWidth && first + p + 1 < depth;
          if (i + kWidth <= kPadded || spills)
            *reinterpret_cast<Vector<T>*>(to) = v[p];
          else
            std::memcpy(to, &v[p], kPadded % kWidth * sizeof(T));
        }
      }
  constexpr int64_t kStrip = 16;  // columns at a time: lines are read in whole cache lines
  for (; first < depth; first += kStrip) {
    const int64_t last = std::min(depth, first + kStrip);
    for (int64_t i = 0; i < kPadded; ++i)
      for (int64_t p = first; p < last; ++p)
        out[p * kPadded + i] = lines[std::min(i, width - 1) * line_stride + p * step];
  }
}

/// All of b: for each depth block its slivers one after another.
template <class T>
struct PackedB {
  const T* data;
  int64_t slivers;

  static int64_t size(int64_t k, int64_t m) { return sliver_count(m) * kTileCols<T> * k; }
  static int64_t sliver_count(int64_t m) { return (m + kTileCols<T> - 1) / kTileCols<T>; }
  const T* sliver(int64_t depth_begin, int64_t depth, int64_t s) const {
    return data + (depth_begin * slivers + s * depth) * kTileCols<T>;
  }
};
template <class T>
void pack_sliver(const Slab<T>& b, int64_t s, T* out) {
  const int64_t slivers = PackedB<T>::sliver_count(b.cols), first = s * kTileCols<T>;
  const int64_t width = std::min<int64_t>(kTileCols<T>, b.cols - first);
  for (int64_t p = 0; p < b.rows; p += kDepth) {
    const int64_t depth = std::min(kDepth, b.rows - p);
    pack<kTileCols<T>>(b.data + p * b.row_stride + first * b.col_stride, b.col_stride, b.row_stride,
                       width, depth, out + (p * slivers + s * depth) * kTileCols<T>);
  }
}

/// What a tile of rows needs of a product in which the rest is known to be 0, or not wanted.
struct Band {
  int64_t depth_begin, depth_end, cols;
};

/// Rows first … last − 1 of c. `packed` holds (last − first, rounded up to tiles) × kDepth.
/// band(i): for the tile of rows from i on; a tile of no depth is left as it is.
template <class T, class BandOf>
void multiply_rows(const Slab<T>& a, const PackedB<T>& b, const Target<T>& c, int64_t first,
                   int64_t last, T* packed, const BandOf& band) {
  constexpr int64_t kWidth = VectorOf<T>::kWidth;
  alignas(64) T tile[kTileRows * kTileCols<T>];
  for (int64_t p = 0; p < a.cols; p += kDepth) {
    const int64_t depth = std::min(kDepth, a.cols - p);
    // Rows 4 KiB apart would all fall into one set of the first cache.
    const bool spread = a.row_stride * static_cast<int64_t>(sizeof(T)) % 4096 != 0;
    const auto is_plain = [&](int64_t i) {
      return a.col_stride == 1 && spread && last - i >= kTileRows;
    };
    for (int64_t i = first; i < last; i += kTileRows)
      if (!is_plain(i))
        pack<kTileRows>(a.data + i * a.row_stride + p * a.col_stride, a.row_stride, a.col_stride,
                        std::min<int64_t>(kTileRows, last - i), depth,
                        packed + (i - first) * depth);
    for (int64_t s = 0; s < b.slivers; ++s) {
      const int64_t col = s * kTileCols<T>, cols = std::min<int64_t>(kTileCols<T>, c.cols - col);
      for (int64_t i = first; i < last; i += kTileRows) {
        const Band need = band(i);
        const int64_t from = std::max(p, need.depth_begin),
                      to = std::min(p + depth, need.depth_end);
        if (from >= to || col >= need.cols) continue;
        const T* right = b.sliver(p, depth, s) + (from - p) * kTileCols<T>;
        const auto multiply = [&](const auto& left) {
          if (cols > kWidth)
            multiply_tile<T, kTileVectors>(to - from, left, right, tile);
          else
            multiply_tile<T, 1>(to - from, left, right, tile);
        };
        if (is_plain(i))
          multiply(PlainRows<T>{a.data + i * a.row_stride + from, a.row_stride});
        else
          multiply(PackedRows<T>{packed + (i - first) * depth + (from - p) * kTileRows});
        const int64_t rows = std::min<int64_t>(kTileRows, last - i);
        const bool add = c.add || from > need.depth_begin;
        T* target = c.data + i * c.stride + col;
        const T* bias = c.bias ? c.bias + col : nullptr;
        if (cols == kTileCols<T>)
          store_tile(tile, rows, std::integral_constant<int64_t, kTileCols<T>>{}, target, c.stride,
                     add, bias);
        else
          store_tile(tile, rows, cols, target, c.stride, add, bias);
      }
    }
  }
}

/// A whole product on one thread, with scratch of its own.
template <class T>
int64_t multiply_scratch(int64_t n, int64_t m, int64_t k) {
  return PackedB<T>::size(k, m) + round_up(n, kTileRows) * std::min(k, kDepth);
}
template <class T, class BandOf>
void multiply_alone(const Slab<T>& a, const Slab<T>& b, const Target<T>& c, T* scratch,
                    const BandOf& band) {
  const PackedB<T> packed{scratch, PackedB<T>::sliver_count(b.cols)};
  for (int64_t s = 0; s < packed.slivers; ++s) pack_sliver(b, s, scratch);
  multiply_rows(a, packed, c, 0, a.rows, scratch + PackedB<T>::size(a.cols, b.cols), band);
}
template <class T>
void multiply_alone(const Slab<T>& a, const Slab<T>& b, const Target<T>& c, T* scratch) {
  multiply_alone(a, b, c, scratch, [&](int64_t) { return Band{0, a.cols, c.cols}; });
}

}  // namespace norma::detail
