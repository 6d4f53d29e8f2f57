#include <algorithm>

#include "norma/core/parallel.h"
#include "norma/core/strided.h"
#include "norma/core/tensor.h"
#include "norma/ops/matmul/kernels.h"

namespace norma {
namespace {

// The blocked product of Goto & van de Geijn (2008, doi:10.1145/1356052.1356053): B is packed once,
// in slivers as wide as the tile that the registers hold; each task packs its rows of A and runs
// the tile kernel over all slivers. Written in the compiler's vector types, so that one source
// serves every width; Eigen 3.4's kernel reached 69 % of the multiply-add peak here, and packed B
// in every task.

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kTileRows = 12;  // 24 of 32 registers accumulate
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kTileRows = 6;  // 12 of 16
#else
constexpr int kVectorBytes = 16, kTileRows = 4;  // 8 of 16
#endif
constexpr int kTileVectors = 2;
constexpr int64_t kDepth = 512;  // elements of k at a time: a sliver of A stays in the first cache

template <class T>
struct VectorOf {
  using type [[gnu::vector_size(kVectorBytes), gnu::aligned(alignof(T)), gnu::may_alias]] = T;
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr int64_t kTileCols = kTileVectors* kVectorBytes / sizeof(T);

/// One matrix among the batch.
template <class T>
struct Slab {
  const T* data;
  int64_t rows, cols, row_stride, col_stride;
};

/// A tile of the product, kTileRows × kVectors vectors: a is packed k × kTileRows, b k × kTileCols.
template <class T, int kVectors>
void multiply_tile(int64_t k, const T* __restrict__ a, const T* __restrict__ b,
                   T* __restrict__ out) {
  constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
  Vector<T> sum[kTileRows][kVectors] = {};
  for (int64_t p = 0; p < k; ++p) {
    Vector<T> right[kVectors];
    for (int v = 0; v < kVectors; ++v)
      right[v] = *reinterpret_cast<const Vector<T>*>(b + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i)
      for (int v = 0; v < kVectors; ++v) sum[i][v] += a[i] * right[v];
    a += kTileRows;
    b += kTileCols<T>;
  }
  for (int i = 0; i < kTileRows; ++i)
    for (int v = 0; v < kVectors; ++v)
      *reinterpret_cast<Vector<T>*>(out + i * kTileCols<T> + v * kLanes) = sum[i][v];
}

/// c (+)= tile, plus the bias at the first depth.
template <class T>
void store_tile(const T* tile, int64_t rows, int64_t cols, T* c, int64_t stride, bool first,
                const T* bias) {
  for (int64_t i = 0; i < rows; ++i) {
    const T* from = tile + i * kTileCols<T>;
    T* to = c + i * stride;
    if (!first) {
      for (int64_t j = 0; j < cols; ++j) to[j] += from[j];
    } else if (bias) {
      for (int64_t j = 0; j < cols; ++j) to[j] = from[j] + bias[j];
    } else {
      for (int64_t j = 0; j < cols; ++j) to[j] = from[j];
    }
  }
}

/// `width` neighbouring lines of a matrix, interleaved: out[p · padded + i] = line i at p, zeros
/// beyond the width.
template <class T>
void pack(const T* lines, int64_t line_stride, int64_t step, int64_t width, int64_t padded,
          int64_t depth, T* out) {
  if (width < padded) std::fill_n(out, depth * padded, T(0));
  if (line_stride == 1) {
    for (int64_t p = 0; p < depth; ++p)
      for (int64_t i = 0; i < width; ++i) out[p * padded + i] = lines[p * step + i];
    return;
  }
  constexpr int64_t kStrip = 16;  // columns at a time: lines are read in whole cache lines
  for (int64_t first = 0; first < depth; first += kStrip) {
    const int64_t last = std::min(depth, first + kStrip);
    for (int64_t i = 0; i < width; ++i)
      for (int64_t p = first; p < last; ++p)
        out[p * padded + i] = lines[i * line_stride + p * step];
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
  const int64_t width = std::min(kTileCols<T>, b.cols - first);
  for (int64_t p = 0; p < b.rows; p += kDepth) {
    const int64_t depth = std::min(kDepth, b.rows - p);
    pack(b.data + p * b.row_stride + first * b.col_stride, b.col_stride, b.row_stride, width,
         kTileCols<T>, depth, out + (p * slivers + s * depth) * kTileCols<T>);
  }
}

/// Rows first … last − 1 of c. `packed` holds (last − first, rounded up to tiles) × kDepth.
template <class T>
void multiply_rows(const Slab<T>& a, const PackedB<T>& b, int64_t m, const T* bias, T* c,
                   int64_t first, int64_t last, T* packed) {
  constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(T));
  alignas(64) T tile[kTileRows * kTileCols<T>];
  for (int64_t p = 0; p < a.cols; p += kDepth) {
    const int64_t depth = std::min(kDepth, a.cols - p);
    for (int64_t i = first; i < last; i += kTileRows)
      pack(a.data + i * a.row_stride + p * a.col_stride, a.row_stride, a.col_stride,
           std::min<int64_t>(kTileRows, last - i), kTileRows, depth, packed + (i - first) * depth);
    for (int64_t s = 0; s < b.slivers; ++s) {
      const int64_t col = s * kTileCols<T>, cols = std::min(kTileCols<T>, m - col);
      const T* right = b.sliver(p, depth, s);
      for (int64_t i = first; i < last; i += kTileRows) {
        const T* left = packed + (i - first) * depth;
        if (cols > kLanes)
          multiply_tile<T, kTileVectors>(depth, left, right, tile);
        else
          multiply_tile<T, 1>(depth, left, right, tile);
        store_tile(tile, std::min<int64_t>(kTileRows, last - i), cols, c + i * m + col, m, p == 0,
                   bias ? bias + col : nullptr);
      }
    }
  }
}

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/// Rows a task: about 4 million multiplications, 50 µs.
Split row_panels(int64_t n, int64_t m, int64_t k) {
  const int64_t rows = (int64_t{1} << 22) / std::max<int64_t>(1, m * k);
  return split(n, std::clamp<int64_t>(round_up(rows, kTileRows), kTileRows, 8 * kTileRows));
}

/// One large product on all threads.
template <class T>
void multiply_shared(const Slab<T>& a, const Slab<T>& b, const T* bias, T* c) {
  const int64_t n = a.rows, m = b.cols, k = a.cols;
  const Tensor b_scratch = empty({PackedB<T>::size(k, m)}, dtype_of<T>);
  T* packed_b = b_scratch.span<T>().data();
  const PackedB<T> packed{packed_b, PackedB<T>::sliver_count(m)};
  const Split slivers =
      split(packed.slivers, std::max<int64_t>(1, (1 << 15) / (k * kTileCols<T> + 1)));
  parallel_for(slivers.blocks, [&](int64_t block) {
    for (int64_t s = slivers.begin(block); s < slivers.end(block); ++s) pack_sliver(b, s, packed_b);
  });
  const Split panels = row_panels(n, m, k);
  const int64_t size = round_up(panels.size, kTileRows) * std::min(k, kDepth);
  const Tensor a_scratch = empty({panels.blocks, size}, dtype_of<T>);
  parallel_for(panels.blocks, [&](int64_t p) {
    multiply_rows(a, packed, m, bias, c, panels.begin(p), panels.end(p),
                  a_scratch.span<T>().data() + p * size);
  });
}

/// The same on one thread, with scratch of its own.
template <class T>
void multiply_alone(const Slab<T>& a, const Slab<T>& b, const T* bias, T* c, T* scratch) {
  const PackedB<T> packed{scratch, PackedB<T>::sliver_count(b.cols)};
  for (int64_t s = 0; s < packed.slivers; ++s) pack_sliver(b, s, scratch);
  multiply_rows(a, packed, b.cols, bias, c, 0, a.rows, scratch + PackedB<T>::size(a.cols, b.cols));
}

template <class T>
void multiply(const MatmulArgs& args) {
  const int d = args.c.shape.dim();
  const int64_t n = args.c.shape[d - 2], m = args.c.shape[d - 1], k = args.a.shape[d - 1];
  const auto lead = [&](const Shape& s) { return Shape(std::span(s.begin(), s.end() - 2)); };
  const detail::StridedLoop<3> batch(
      lead(args.c.shape), {lead(args.a.strides), lead(args.b.strides), lead(args.c.strides)});
  if (args.c.shape.numel() == 0) return;
  const T* bias = args.bias ? args.bias.as<T>() : nullptr;
  if (k == 0) {  // an empty sum
    for (int64_t i = 0; i < args.c.shape.numel(); ++i)
      args.c.as<T>()[i] = bias ? bias[i % m] : T(0);
    return;
  }
  struct Operands {
    Slab<T> a, b;
    T* c;
  };
  const auto operands = [&](int64_t product) {
    auto offsets = batch.row_offsets(product / batch.row_length());
    for (int i = 0; i < 3; ++i) offsets[i] += product % batch.row_length() * batch.row_stride(i);
    return Operands{
        {args.a.as<T>() + offsets[0], n, k, args.a.strides[d - 2], args.a.strides[d - 1]},
        {args.b.as<T>() + offsets[1], k, m, args.b.strides[d - 2], args.b.strides[d - 1]},
        args.c.as<T>() + offsets[2]};
  };
  const int64_t products = batch.rows() * batch.row_length();
  if (products == 1 || n * m * k > (1 << 22)) {
    for (int64_t i = 0; i < products; ++i) {
      const Operands o = operands(i);
      multiply_shared(o.a, o.b, bias, o.c);
    }
    return;
  }
  // Small products share a task: waking a thread costs as much as 10⁵ multiplications.
  const Split tasks = split(products, std::max<int64_t>(1, (1 << 18) / (n * m * k)));
  const int64_t size = PackedB<T>::size(k, m) + round_up(n, kTileRows) * std::min(k, kDepth);
  const Tensor scratch = empty({tasks.blocks, size}, dtype_of<T>);
  parallel_for(tasks.blocks, [&](int64_t t) {
    for (int64_t i = tasks.begin(t); i < tasks.end(t); ++i) {
      const Operands o = operands(i);
      multiply_alone(o.a, o.b, bias, o.c, scratch.span<T>().data() + t * size);
    }
  });
}

}  // namespace

void run(Cpu, const MatmulArgs& args) {
  if (args.c.dtype == float64)
    multiply<double>(args);
  else
    multiply<float>(args);
}

}  // namespace norma
