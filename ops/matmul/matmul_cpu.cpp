#include <algorithm>

#include "norma/core/parallel.h"
#include "norma/core/strided.h"
#include "norma/core/tensor.h"
#include "norma/ops/elementwise/kernels.h"
#include "norma/ops/matmul/kernels.h"
#include "norma/ops/matmul/tile_cpu.h"

namespace norma {
namespace {

using detail::Band;
using detail::kDepth;
using detail::kTileCols;
using detail::kTileRows;
using detail::multiply_rows;
using detail::PackedB;
using detail::round_up;
using detail::Slab;

constexpr int64_t kMostRows = 8 * kTileRows;  // a task's

/// The tasks of a product of n rows: for each thread an equal share, which it begins with, in
/// panels of `size` rows. What the last two of a share would be is halved until a tile is left: who
/// is done waits for that, not for a panel (a toy's training step on two threads takes 1.015 times
/// as long without). What a row becomes does not depend on the task it is in.
class Panels {
 public:
  Panels(int64_t n, int64_t size, int64_t shares)
      : n_(n),
        size_(round_up(size, kTileRows)),
        share_(round_up((n + shares - 1) / shares, kTileRows)),
        whole_(std::max<int64_t>(0, (share_ - 1) / size_ - 1)) {
    count_ = whole_ + 1;
    while (before(count_) < share_) ++count_;
    blocks = count_ * shares;
  }
  int64_t begin(int64_t i) const { return std::min(n_, i / count_ * share_ + before(i % count_)); }
  int64_t end(int64_t i) const {
    return std::min(n_, i / count_ * share_ + before(i % count_ + 1));
  }

  int64_t blocks;

 private:
  /// Rows of a share before its panel p.
  int64_t before(int64_t p) const {
    int64_t rows = std::min(p, whole_) * size_;
    for (int64_t i = whole_; i < p; ++i) rows += round_up((share_ - rows + 1) / 2, kTileRows);
    return rows;
  }

  int64_t n_, size_, share_, whole_, count_;
};

// A task's: a weight of 128 × 128 makes four, of which each of two threads gets two.
constexpr int64_t kPackElements = 1 << 12;

Split dense_pieces(int64_t rows, int64_t cols) {
  return split(rows, std::clamp<int64_t>(kPackElements / cols, 1, kDepth));
}
/// Rows first … last − 1 of a b whose rows are dense.
template <class T>
void pack_piece(const Slab<T>& b, int64_t first, int64_t last, T* packed) {
  while (first < last) {
    const int64_t end = std::min(last, first / kDepth * kDepth + kDepth);
    detail::pack_dense_rows(b, first, end, packed);
    first = end;
  }
}

/// Packs b on all threads.
template <class T>
void pack_shared(const Slab<T>& b, T* packed) {
  if (b.col_stride == 1) {
    const Split pieces = dense_pieces(b.rows, b.cols);
    parallel_for(pieces.blocks,
                 [&](int64_t i) { pack_piece(b, pieces.begin(i), pieces.end(i), packed); });
    return;
  }
  const Split slivers = split(PackedB<T>::sliver_count(b.cols),
                              std::max<int64_t>(1, kPackElements / (b.rows * kTileCols<T>)));
  parallel_for(slivers.blocks, [&](int64_t i) {
    for (int64_t s = slivers.begin(i); s < slivers.end(i); ++s) pack_sliver(b, s, packed);
  });
}

/// What the epilogue makes of rows first … last − 1: of few, while they are in the caches.
void finish_rows(const MatmulArgs& k, int64_t first, int64_t last) {
  if (k.epilogue == MatmulEpilogue::plain) return;
  const int64_t cols = k.c.shape.back(), offset = first * cols * size_of(k.c.dtype);
  View c;
  c.data = k.c.as<char>() + offset, c.dtype = k.c.dtype;
  c.shape = {(last - first) * cols}, c.strides = {1};
  ConstView product, pre;
  product.data = c.data, product.dtype = c.dtype, product.shape = c.shape, product.strides = {1};
  pre = product, pre.data = k.pre.row<char>(0) + offset;
  if (k.epilogue == MatmulEpilogue::gelu)
    run(Cpu{}, UnaryArgs{.function = UnaryFunction::gelu_tanh, .x = pre, .y = c});
  else
    run(Cpu{},
        BinaryArgs{.function = BinaryFunction::gelu_tanh_backward, .a = product, .b = pre, .y = c});
}

/// One large product on all threads; after_rows(first, last) follows each panel of its rows.
template <class T, class AfterRows>
void multiply_shared(const Slab<T>& a, const Slab<T>& b, const T* bias, T* c,
                     const AfterRows& after_rows) {
  const int64_t n = a.rows, m = b.cols, k = a.cols;
  const Tensor b_scratch = empty({PackedB<T>::size(k, m)}, dtype_of<T>);
  T* packed_b = b_scratch.span<T>().data();
  const PackedB<T> packed{packed_b, PackedB<T>::sliver_count(m)};
  pack_shared(b, packed_b);
  // At most about 4 million multiplications, 50 µs.
  const int64_t rows = std::clamp<int64_t>((int64_t{1} << 22) / (m * k), 1, kMostRows);
  const int64_t tiles = (n + kTileRows - 1) / kTileRows;
  const Panels panels(n, rows, std::min<int64_t>(num_threads(), tiles));
  const int64_t depth = std::min(k, kDepth);
  const Tensor a_scratch = empty({round_up(n, kTileRows), depth}, dtype_of<T>);
  parallel_for(panels.blocks, [&](int64_t p) {
    const int64_t first = panels.begin(p), last = panels.end(p);
    if (first == last) return;  // the last share is the smallest
    multiply_rows(a, packed, {c, m, m, bias}, first, last,
                  a_scratch.span<T>().data() + first * depth, [&](int64_t) {
                    return Band{0, k, m};
                  });
    after_rows(first, last);
  });
}

/// Half of a product's depth.
template <class T>
struct Half {
  Slab<T> a, b;

  Half(const Slab<T>& whole_a, const Slab<T>& whole_b, int64_t first, int64_t last)
      : a(whole_a), b(whole_b) {
    a.data += first * a.col_stride, a.cols = last - first;
    b.data += first * b.row_stride, b.rows = last - first;
  }
};

/// Whether a product is what a weight's gradient is: long sums, few elements, and all that meets
/// at one depth dense in both factors.
template <class T>
bool is_long(const Slab<T>& a, const Slab<T>& b) {
  return a.cols >= kDepth && a.rows * b.cols <= int64_t{1} << 17 && a.row_stride == 1 &&
         b.col_stride == 1;
}

/// A long product as the sum of two, of half the depth each: a thread mostly takes the half that
/// earlier ops left in its own cache. A toy's training step on two threads takes 1.03 times as long
/// without.
template <class T>
void multiply_long(const Slab<T>& a, const Slab<T>& b, T* c) {
  const int64_t n = a.rows, m = b.cols, middle = (a.cols + 1) / 2;
  const Half<T> halves[] = {{a, b, 0, middle}, {a, b, middle, a.cols}};
  const int64_t packed_size = PackedB<T>::size(middle, m);
  const Tensor packed = empty({2, packed_size}, dtype_of<T>), second = empty({n, m}, dtype_of<T>);
  T *const b_at[] = {packed.span<T>().data(), packed.span<T>().data() + packed_size},
           *const c_at[] = {c, second.span<T>().data()};
  const Split pieces = dense_pieces(middle, m);
  parallel_for(2 * pieces.blocks, [&](int64_t i) {
    const int64_t h = i / pieces.blocks, piece = i % pieces.blocks;
    pack_piece(halves[h].b, pieces.begin(piece), std::min(pieces.end(piece), halves[h].b.rows),
               b_at[h]);
  });
  const Panels panels(n, kMostRows, (num_threads() + 1) / 2);
  parallel_for(2 * panels.blocks, [&](int64_t i) {
    const int64_t h = i / panels.blocks, panel = i % panels.blocks;
    const int64_t first = panels.begin(panel), last = panels.end(panel);
    if (first == last) return;
    const Tensor scratch =
        empty({round_up(last - first, kTileRows), std::min(middle, kDepth)}, dtype_of<T>);
    multiply_rows(halves[h].a, {b_at[h], PackedB<T>::sliver_count(m)}, {c_at[h], m, m}, first, last,
                  scratch.span<T>().data(), [&](int64_t) {
                    return Band{0, halves[h].a.cols, m};
                  });
  });
  const Split parts = split(n * m, 2 * kPackElements);
  parallel_for(parts.blocks, [&](int64_t part) {
    for (int64_t i = parts.begin(part); i < parts.end(part); ++i) c[i] += c_at[1][i];
  });
}

template <class T>
void multiply(const MatmulArgs& args) {
  const int d = args.c.shape.dim();
  const int64_t n = args.c.shape[d - 2], m = args.c.shape[d - 1], k = args.a.shape[d - 1];
  const auto lead = [&](const Shape& s) { return Shape(std::span(s.begin(), s.end() - 2)); };
  const detail::StridedLoop<3> batch(
      lead(args.c.shape), {lead(args.a.strides), lead(args.b.strides), lead(args.c.strides)});
  if (args.c.shape.numel() == 0) return;
  const bool plain = args.epilogue == MatmulEpilogue::plain;
  T* const to = args.epilogue == MatmulEpilogue::gelu ? args.pre.row<T>(0) : args.c.as<T>();
  const auto finish = [&](int64_t first, int64_t last) { finish_rows(args, first, last); };
  const T* bias = args.bias ? args.bias.as<T>() : nullptr;
  if (k == 0) {  // an empty sum
    for (int64_t i = 0; i < args.c.shape.numel(); ++i) to[i] = bias ? bias[i % m] : T(0);
    return finish(0, n);
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
        to + offsets[2]};
  };
  const int64_t products = batch.rows() * batch.row_length();
  if (products == 1 || n * m * k > (1 << 22)) {
    for (int64_t i = 0; i < products; ++i) {
      const Operands o = operands(i);
      if (plain && !bias && is_long(o.a, o.b))
        multiply_long(o.a, o.b, o.c);
      else
        multiply_shared(o.a, o.b, bias, o.c, finish);
    }
    return;
  }
  // Small products share a task: waking a thread costs as much as 10⁵ multiplications.
  const Split tasks = split(products, std::max<int64_t>(1, (1 << 18) / (n * m * k)));
  const int64_t size = detail::multiply_scratch<T>(n, m, k);
  parallel_for(tasks.blocks, [&](int64_t t) {
    const Tensor scratch = empty({size}, dtype_of<T>);
    for (int64_t i = tasks.begin(t); i < tasks.end(t); ++i) {
      const Operands o = operands(i);
      detail::multiply_alone<T>(o.a, o.b, {o.c, m, m, bias}, scratch.span<T>().data());
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
