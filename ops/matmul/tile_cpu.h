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

/// kTileRows of A, in the kernel at(i, p) for row i at depth p: packed, k × kTileRows, or as they
/// lie where k is dense, or the rows.
template <class T>
struct PackedRows {
  const T* data;
  PackedRows in_registers() const { return *this; }
  void fetch(int, int64_t) const {}
  T at(int i, int64_t p) const { return data[p * kTileRows + i]; }
};
template <class T>
struct PlainRows {
  const T* data;
  int64_t stride;

  /// Three rows a pointer: the processor adds one index to an address, and has few registers. As
  /// far as the compiler can tell the pointers are unrelated; else it makes them one, and eleven
  /// indices (12 rows then took 1.05 times as long).
  struct InRegisters {
    const T* three[(kTileRows + 2) / 3];
    int64_t stride;
    T at(int i, int64_t p) const { return three[i / 3][i % 3 * stride + p]; }
    /// Asks for the same of the next tile.
    void fetch(int i, int64_t p) const {
      __builtin_prefetch(three[i / 3] + (i % 3 + kTileRows) * stride + p);
    }
  };
  [[gnu::always_inline]] InRegisters in_registers() const {
    InRegisters a{{}, stride};
    for_constants<(kTileRows + 2) / 3>([&](auto j) __attribute__((always_inline)) {
      a.three[j] = data + j * 3 * stride;
      asm("" : "+r"(a.three[j]));
    });
    return a;
  }
};
template <class T>
struct BesideRows {
  const T* data;
  int64_t stride;
  BesideRows in_registers() const { return *this; }
  void fetch(int, int64_t) const {}
  T at(int i, int64_t p) const { return data[p * stride + i]; }
};

/// Where a product goes.
template <class T>
struct Target {
  T* data;
  int64_t cols, stride;
  const T* bias = nullptr;
  bool add = false;  ///< to what is there
};

/// c (+)= a tile of the product, kTileRows × kVectors vectors, its first `rows` rows; b is packed
/// k × kTileCols, k at least 1.
template <class T, int kVectors, class Rows>
void multiply_tile(int64_t k, const Rows left, const T* __restrict__ b, const Target<T>& c,
                   int64_t rows) {
  constexpr int kWidth = VectorOf<T>::kWidth;
  const auto a = left.in_registers();
  Vector<T> sum[kTileRows * kVectors], right[kVectors];
  for_constants<kTileRows>([&](auto i) __attribute__((always_inline)) {
    if (i < rows)  // here by when they are written
      for_constants<kVectors>([&](auto v) __attribute__((always_inline)) {
        if (v * kVectorBytes % 64 == 0) __builtin_prefetch(c.data + i * c.stride + v * kWidth, 1);
      });
  });
  const auto at = [](const T* p) { return *reinterpret_cast<const Vector<T>*>(p); };
  const auto load_right = [&]() __attribute__((always_inline)) {
    for_constants<kVectors>([&](auto v)
                                __attribute__((always_inline)) { right[v] = at(b + v * kWidth); });
    b += kTileCols<T>;
  };
  load_right();
  for_constants<kTileRows>([&](auto i) __attribute__((always_inline)) {
    for_constants<kVectors>([&](auto v) __attribute__((always_inline)) {
      sum[i * kVectors + v] = a.at(i, 0) * right[v];
    });
  });
  // Four depths a turn: a turn's own three instructions are an eighth of it, which a processor that
  // shares its core with a neighbour notices (0.89 to 0.94 of the time where A is not packed).
  const auto add = [&](int64_t p) __attribute__((always_inline)) {
    load_right();
    for_constants<kTileRows>([&](auto i) __attribute__((always_inline)) {
      for_constants<kVectors>([&](auto v) __attribute__((always_inline)) {
        sum[i * kVectors + v] += a.at(i, p) * right[v];
      });
    });
  };
  // A line of each row at a time, and as many of the next tile's are asked for: a panel's all at
  // once wait for each other and hold up the multiplications (a layer's products with rows that no
  // cache has: 0.92 to 0.99 of the time).
  constexpr int64_t kLine = 64 / sizeof(T);
  int64_t p = 1;
  while (p + kLine <= k) {
    for_constants<kTileRows>([&](auto i) __attribute__((always_inline)) { a.fetch(i, p); });
    const int64_t end = p + kLine;
#pragma GCC unroll 4
    for (; p < end; ++p) add(p);
  }
#pragma GCC unroll 4
  for (; p < k; ++p) add(p);
  T* const out = c.data;  // the compiler takes it for changed by every store
  const T* const bias = c.bias;
  const int64_t stride = c.stride;
  const auto store = [&](const auto& more) __attribute__((always_inline)) {
    for_constants<kTileRows>([&](auto i) __attribute__((always_inline)) {
      if (i >= rows) return;
      for_constants<kVectors>([&](auto v) __attribute__((always_inline)) {
        T* to = out + i * stride + v * kWidth;
        *reinterpret_cast<Vector<T>*>(to) = sum[i * kVectors + v] + more(to, v);
      });
    });
  };
  if (c.add)
    store([&](const T* to, int) { return at(to); });
  else if (bias)
    store([&](const T*, int v) { return at(bias + v * kWidth); });
  else
    store([&](const T*, int) { return Vector<T>{}; });
}

/// The same where its columns do not fill kVectors vectors: by way of a buffer.
template <class T, int kVectors, class Rows>
void multiply_part(int64_t k, const Rows& a, const T* b, const Target<T>& c, int64_t rows) {
  alignas(64) T tile[kTileRows * kTileCols<T>];
  multiply_tile<T, kVectors>(k, a, b, {tile, kTileCols<T>, kTileCols<T>}, rows);
  for (int64_t i = 0; i < rows; ++i) {
    const T* from = tile + i * kTileCols<T>;
    T* to = c.data + i * c.stride;
    for (int64_t j = 0; j < c.cols; ++j)
      to[j] = c.add ? to[j] + from[j] : c.bias ? from[j] + c.bias[j] : from[j];
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

/// kWidth lines at kWidth places each, exchanged. What lies `ahead` is fetched meanwhile: the
/// processor does not foresee that the lines after these come next.
template <class T, class LineOf>
[[gnu::always_inline]] inline void load_transposed(Vector<T>* v, const LineOf& line,
                                                   int64_t ahead) {
  for_constants<VectorOf<T>::kWidth>([&](auto j) __attribute__((always_inline)) {
    const T* from = line(j);
    __builtin_prefetch(from + ahead);
    v[j] = *reinterpret_cast<const Vector<T>*>(from);
  });
  transpose_lanes<T>(v);
}

/// Lines that lie side by side, in groups of kPadded, the last filled up with zeros: what they have
/// at one p is read as it lies. out[p · kPadded + i] = line i at p, a group's group_stride behind.
template <int kPadded, class T>
void pack_beside(const T* lines, int64_t step, int64_t width, int64_t depth, T* out,
                 int64_t group_stride) {
  constexpr int64_t kTogether = 8 * kPadded, kAhead = 8, kLine = 64 / sizeof(T);
  for (int64_t begin = 0; begin < width; begin += kTogether) {
    const int64_t end = std::min(width, begin + kTogether);
    for (int64_t p = 0; p < depth; ++p) {
      const T* from = lines + p * step;
      for (int64_t i = begin; i < end; i += kLine) __builtin_prefetch(from + kAhead * step + i);
      T* to = out + begin / kPadded * group_stride + p * kPadded;
      int64_t i = begin;
      for (; i + kPadded <= end; i += kPadded, to += group_stride)
        std::memcpy(to, from + i, kPadded * sizeof(T));
      if (i < end) std::fill(std::copy(from + i, from + end, to), to + kPadded, T(0));
    }
  }
}

/// `width` neighbouring lines of a matrix, interleaved: out[p · kPadded + i] = line i at p. Beyond
/// the width anything: it meets only itself, and nobody keeps it.
template <int kPadded, class T>
void pack(const T* lines, int64_t line_stride, int64_t step, int64_t width, int64_t depth, T* out) {
  constexpr int kWidth = VectorOf<T>::kWidth;
  if (line_stride == 1) return pack_beside<kPadded>(lines, step, width, depth, out, 0);
  int64_t first = 0;
  if (step == 1)
    for (; first + kWidth <= depth; first += kWidth)
      for (int64_t i = 0; i < kPadded; i += kWidth) {
        Vector<T> v[kWidth];
        const int64_t ahead = kPadded * line_stride;
        const T* const here = lines + i * line_stride + first;
        if (i + kWidth <= width)
          load_transposed<T>(
              v, [&](int64_t j) { return here + j * line_stride; }, ahead);
        else
          load_transposed<T>(
              v, [&](int64_t j) { return here + std::min(j, width - 1 - i) * line_stride; }, ahead);
        for_constants<kWidth>([&](auto p) __attribute__((always_inline)) {
          T* to = out + (first + p) * kPadded + i;
          // A last part of a vector may spill where the next p is still to be written.
          const bool spills = kPadded < kWidth && first + p + 1 < depth;
          if (i + kWidth <= kPadded || spills)
            *reinterpret_cast<Vector<T>*>(to) = v[p];
          else
            std::memcpy(to, &v[p], kPadded % kWidth * sizeof(T));
        });
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
/// Rows first … last − 1 of b for all slivers, where a row is dense. No depth block begins between
/// them.
template <class T>
void pack_dense_rows(const Slab<T>& b, int64_t first, int64_t last, T* out) {
  constexpr int64_t kCols = kTileCols<T>;
  const int64_t begin = first / kDepth * kDepth, depth = std::min(kDepth, b.rows - begin);
  const int64_t ahead = begin * PackedB<T>::sliver_count(b.cols) + first - begin;
  pack_beside<kCols>(b.data + first * b.row_stride, b.row_stride, b.cols, last - first,
                     out + ahead * kCols, depth * kCols);
}
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

/// Asks for the rows of a that are read where they lie: each is too short for the processor to
/// foresee the next.
template <class T>
void fetch_rows(const Slab<T>& a, int64_t first, int64_t last, int64_t p, int64_t depth) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = first; i < last; ++i)
    for (int64_t q = 0; q < depth; q += kLine)
      __builtin_prefetch(a.data + i * a.row_stride + p + q);
}

/// Rows first … last − 1 of c. `packed` holds (last − first, rounded up to tiles) × kDepth.
/// band(i): for the tile of rows from i on; a tile of no depth is left as it is.
template <class T, class BandOf>
void multiply_rows(const Slab<T>& a, const PackedB<T>& b, const Target<T>& c, int64_t first,
                   int64_t last, T* packed, const BandOf& band) {
  constexpr int64_t kWidth = VectorOf<T>::kWidth;
  for (int64_t p = 0; p < a.cols; p += kDepth) {
    const int64_t depth = std::min(kDepth, a.cols - p);
    // Rows 4 KiB apart would all fall into one set of the first cache.
    const bool spread = a.row_stride * static_cast<int64_t>(sizeof(T)) % 4096 != 0;
    const auto is_plain = [&](int64_t i) {
      return a.col_stride == 1 && spread && last - i >= kTileRows;
    };
    const bool beside = a.row_stride == 1 && a.col_stride != 1;
    // All of it stays in the first cache: attention's scores.
    const bool small = depth * a.col_stride * static_cast<int64_t>(sizeof(T)) <= 16 << 10;
    const auto is_beside = [&](int64_t i) { return beside && small && last - i >= kTileRows; };
    if (beside && !small)
      pack_beside<kTileRows>(a.data + first + p * a.col_stride, a.col_stride, last - first, depth,
                             packed, kTileRows * depth);
    for (int64_t i = first; i < last; i += kTileRows)
      if (!(beside && !small) && !is_plain(i) && !is_beside(i))
        pack<kTileRows>(a.data + i * a.row_stride + p * a.col_stride, a.row_stride, a.col_stride,
                        std::min<int64_t>(kTileRows, last - i), depth,
                        packed + (i - first) * depth);
    if (a.col_stride == 1 && spread)
      fetch_rows(a, first, std::min(last, first + kTileRows), p, depth);
    for (int64_t s = 0; s < b.slivers; ++s) {
      const int64_t col = s * kTileCols<T>, cols = std::min<int64_t>(kTileCols<T>, c.cols - col);
      for (int64_t i = first; i < last; i += kTileRows) {
        const Band need = band(i);
        const int64_t from = std::max(p, need.depth_begin),
                      to = std::min(p + depth, need.depth_end);
        if (from >= to || col >= need.cols) continue;
        const T* right = b.sliver(p, depth, s) + (from - p) * kTileCols<T>;
        const int64_t rows = std::min<int64_t>(kTileRows, last - i);
        const Target<T> target{c.data + i * c.stride + col, cols, c.stride,
                               c.bias ? c.bias + col : nullptr, c.add || from > need.depth_begin};
        const auto multiply = [&](const auto& left) {
          if (cols == kTileCols<T>)
            multiply_tile<T, kTileVectors>(to - from, left, right, target, rows);
          else if (cols > kWidth)
            multiply_part<T, kTileVectors>(to - from, left, right, target, rows);
          else
            multiply_part<T, 1>(to - from, left, right, target, rows);
        };
        if (is_plain(i))
          multiply(PlainRows<T>{a.data + i * a.row_stride + from, a.row_stride});
        else if (is_beside(i))
          multiply(BesideRows<T>{a.data + i + from * a.col_stride, a.col_stride});
        else
          multiply(PackedRows<T>{packed + (i - first) * depth + (from - p) * kTileRows});
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
  if (b.col_stride == 1)
    for (int64_t p = 0; p < b.rows; p += kDepth)
      pack_dense_rows(b, p, std::min(b.rows, p + kDepth), scratch);
  else
    for (int64_t s = 0; s < packed.slivers; ++s) pack_sliver(b, s, scratch);
  multiply_rows(a, packed, c, 0, a.rows, scratch + PackedB<T>::size(a.cols, b.cols), band);
}
template <class T>
void multiply_alone(const Slab<T>& a, const Slab<T>& b, const Target<T>& c, T* scratch) {
  multiply_alone(a, b, c, scratch, [&](int64_t) { return Band{0, a.cols, c.cols}; });
}

}  // namespace norma::detail
