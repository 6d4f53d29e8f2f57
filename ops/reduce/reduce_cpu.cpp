#include <limits>

#include "norma/core/tensor.h"
#include "norma/ops/elementwise/operands_cpu.h"
#include "norma/ops/reduce/kernels.h"

namespace norma {
namespace {

using detail::compute_t;
using detail::StridedLoop;

constexpr int64_t kLeaf = 256;           // elements summed in lanes
constexpr int64_t kBlock = 128 * kLeaf;  // elements a task; a power of two of leaves keeps the tree
constexpr int kLanes = 32;               // the same for every processor, and so are the bits

template <class Acc>
struct SumOf {
  static constexpr Acc identity = 0;
  static Acc combine(Acc a, Acc b) {
    if constexpr (std::is_same_v<Acc, int64_t>)  // integers wrap around
      return static_cast<Acc>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
    else
      return a + b;
  }
};
template <class Acc>
struct MaxOf {
  static constexpr Acc identity = std::numeric_limits<Acc>::has_infinity
                                      ? -std::numeric_limits<Acc>::infinity()
                                      : std::numeric_limits<Acc>::min();
  static Acc combine(Acc a, Acc b) {  // NaN wins
    const Acc larger = b > a ? b : a;
    return b != b ? b : larger;
  }
};

template <class R, class Acc>
Acc reduce_leaf(const Acc* x, int64_t n) {
  Acc lanes[kLanes];
  for (int j = 0; j < kLanes; ++j) lanes[j] = R::identity;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lanes[j] = R::combine(lanes[j], x[i + j]);
  for (int j = 0; i + j < n; ++j) lanes[j] = R::combine(lanes[j], x[i + j]);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) lanes[j] = R::combine(lanes[j], lanes[j + half]);
  return lanes[0];
}

/// Adds values pairwise by their index, as they come: a binary counter of partial results.
template <class R, class Acc>
class Pairwise {
 public:
  void add(Acc value) {
    for (uint64_t bit = count_++; bit & 1; bit >>= 1) value = R::combine(levels_[--depth_], value);
    levels_[depth_++] = value;
  }
  Acc total() {
    if (depth_ == 0) return R::identity;
    Acc value = levels_[--depth_];
    while (depth_ > 0) value = R::combine(levels_[--depth_], value);
    return value;
  }

 private:
  Acc levels_[64];
  int depth_ = 0;
  uint64_t count_ = 0;
};

/// Elements first … last − 1 of what one result is reduced from, counted in row-major order of the
/// reduced dimensions.
template <class R, class T>
compute_t<T> reduce_range(const T* x, const StridedLoop<1>& reduced, int64_t first, int64_t last) {
  using Acc = compute_t<T>;
  const int64_t length = reduced.row_length();
  Pairwise<R, Acc> sums;
  Acc buffer[kLeaf], repeated[kLeaf];
  for (int64_t i = first; i < last; i += kLeaf) {
    const int64_t n = std::min(kLeaf, last - i);
    const int64_t row = i / length, column = i % length;
    if (column + n <= length) {
      const auto leaf =
          detail::load(x + reduced.row_offsets(row)[0], reduced.row_stride(0), column, n, buffer);
      if (leaf.step == 0) std::fill_n(repeated, n, *leaf.data);
      sums.add(reduce_leaf<R>(leaf.step == 0 ? repeated : leaf.data, n));
      continue;
    }
    for (int64_t j = 0; j < n; ++j)
      buffer[j] = static_cast<Acc>(
          x[reduced.row_offsets((i + j) / length)[0] + (i + j) % length * reduced.row_stride(0)]);
    sums.add(reduce_leaf<R>(buffer, n));
  }
  return sums.total();
}

template <class Y, class Acc>
Y finished(Acc value, double divisor) {
  if constexpr (std::is_same_v<Acc, int64_t>)
    return static_cast<Y>(value);
  else
    return static_cast<Y>(value / static_cast<Acc>(divisor));
}

/// What one result is reduced from lies together, or nothing does.
template <class R, class T, class Y>
void reduce_rows(const ReduceArgs& k, const StridedLoop<2>& kept, const StridedLoop<1>& reduced,
                 int64_t n) {
  using Acc = compute_t<T>;
  const int64_t results = k.y.shape.numel(), length = kept.row_length();
  const T* x = k.x.as<T>();
  Y* y = k.y.as<Y>();
  const auto offset_of = [&](int64_t i) {
    return kept.row_offsets(i / length)[0] + i % length * kept.row_stride(0);
  };
  if (n > kBlock) {
    const int64_t blocks = (n + kBlock - 1) / kBlock;
    const Tensor partial = empty({blocks}, dtype_of<Acc>);
    Acc* p = partial.span<Acc>().data();
    for (int64_t i = 0; i < results; ++i) {
      parallel_for(blocks, [&](int64_t b) {
        p[b] =
            reduce_range<R>(x + offset_of(i), reduced, b * kBlock, std::min(n, (b + 1) * kBlock));
      });
      Pairwise<R, Acc> sums;
      for (int64_t b = 0; b < blocks; ++b) sums.add(p[b]);
      y[i] = finished<Y>(sums.total(), k.divisor);
    }
    return;
  }
  const Split rows =
      split(results, std::max<int64_t>(1, detail::kPieceGrain / std::max<int64_t>(n, 1)));
  parallel_for(rows.blocks, [&](int64_t b) {
    for (int64_t i = rows.begin(b); i < rows.end(b); ++i)
      y[i] = finished<Y>(reduce_range<R>(x + offset_of(i), reduced, 0, n), k.divisor);
  });
}

/// Neighbouring results are reduced from neighbouring elements: whole rows are added at a time.
template <class R, class T, class Y>
void reduce_columns(const ReduceArgs& k, const StridedLoop<2>& kept, const StridedLoop<1>& reduced,
                    int64_t n) {
  using Acc = compute_t<T>;
  constexpr int64_t kTile = 256;
  const int64_t cols = kept.row_length(), tiles = (cols + kTile - 1) / kTile;
  const Split rows = split(n, 64);
  const Tensor partial = empty({kept.rows(), rows.blocks, cols}, dtype_of<Acc>);
  Acc* p = partial.span<Acc>().data();
  const auto reduce_tile = [&](int64_t outer, int64_t b, int64_t t) {
    const int64_t first = t * kTile, width = std::min(kTile, cols - first);
    const T* x = k.x.as<T>() + kept.row_offsets(outer)[0] + first;
    Acc* sum = p + (outer * rows.blocks + b) * cols + first;
    std::fill_n(sum, width, R::identity);
    for (int64_t i = rows.begin(b); i < rows.end(b); ++i) {
      const T* row = x + reduced.row_offsets(i / reduced.row_length())[0] +
                     i % reduced.row_length() * reduced.row_stride(0);
      for (int64_t c = 0; c < width; ++c) sum[c] = R::combine(sum[c], static_cast<Acc>(row[c]));
    }
  };
  const int64_t tasks = kept.rows() * rows.blocks * tiles;
  const Split work =
      split(tasks, std::max<int64_t>(1, detail::kPieceGrain / (rows.size * std::min(cols, kTile))));
  parallel_for(work.blocks, [&](int64_t w) {
    for (int64_t task = work.begin(w); task < work.end(w); ++task)
      reduce_tile(task / tiles / rows.blocks, task / tiles % rows.blocks, task % tiles);
  });
  const Split results =
      split(kept.rows() * tiles,
            std::max<int64_t>(1, detail::kPieceGrain / (rows.blocks * std::min(cols, kTile))));
  parallel_for(results.blocks, [&](int64_t w) {
    for (int64_t task = results.begin(w); task < results.end(w); ++task) {
      const int64_t outer = task / tiles, first = task % tiles * kTile;
      const int64_t width = std::min(kTile, cols - first);
      Acc* sum = p + outer * rows.blocks * cols + first;
      for (int64_t b = 1; b < rows.blocks; ++b)
        for (int64_t c = 0; c < width; ++c) sum[c] = R::combine(sum[c], sum[b * cols + c]);
      Y* y = k.y.as<Y>() + outer * cols + first;
      for (int64_t c = 0; c < width; ++c) y[c] = finished<Y>(sum[c], k.divisor);
    }
  });
}

Shape part(const Shape& shape, int first, int last) {
  return Shape(std::span(shape.begin() + first, shape.begin() + last));
}

template <template <class> class R, class T, class Y>
void reduce(const ReduceArgs& k) {
  using Reducer = R<compute_t<T>>;
  const int dims = k.x.shape.dim();
  const Shape kept_shape = part(k.x.shape, 0, k.kept);
  const StridedLoop<2> kept(kept_shape, {part(k.x.strides, 0, k.kept), dense_strides(kept_shape)});
  const Shape reduced_shape = part(k.x.shape, k.kept, dims);
  const StridedLoop<1> reduced(reduced_shape, {part(k.x.strides, k.kept, dims)});
  const int64_t n = reduced_shape.numel();
  if (k.y.shape.numel() == 0) return;
  const bool columns =
      kept.row_stride(0) == 1 && kept.row_length() >= 8 && n > 1 && reduced.row_stride(0) != 1;
  if (columns)
    reduce_columns<Reducer, T, Y>(k, kept, reduced, n);
  else
    reduce_rows<Reducer, T, Y>(k, kept, reduced, n);
}

template <class T>
bool beats(T a, T b) {  // NaN is largest; the first of equals stays
  return a > b || (a != a && b == b);
}

}  // namespace

void run(Cpu, const ReduceArgs& k) {
  visit_all(k.x.dtype, [&]<class T>() {
    if (k.reduction == Reduction::max) {
      reduce<MaxOf, T, T>(k);
    } else {
      using Y = std::conditional_t<is_floating(dtype_of<T>), T, int64_t>;
      reduce<SumOf, T, Y>(k);
    }
  });
}

void run(Cpu, const ArgmaxArgs& k) {
  const int last = k.x.shape.dim() - 1;
  const Shape kept_shape = part(k.x.shape, 0, last);
  const StridedLoop<1> kept(kept_shape, {part(k.x.strides, 0, last)});
  const int64_t n = k.x.shape[last], stride = k.x.strides[last], length = kept.row_length();
  visit_all(k.x.dtype, [&]<class T>() {
    const Split rows = split(k.y.shape.numel(), std::max<int64_t>(1, detail::kPieceGrain / n));
    parallel_for(rows.blocks, [&](int64_t b) {
      for (int64_t i = rows.begin(b); i < rows.end(b); ++i) {
        const T* x =
            k.x.as<T>() + kept.row_offsets(i / length)[0] + i % length * kept.row_stride(0);
        int64_t best = 0;
        for (int64_t c = 1; c < n; ++c)
          if (beats<compute_t<T>>(x[c * stride], x[best * stride])) best = c;
        k.y.as<int64_t>()[i] = best;
      }
    });
  });
}

void run(Cpu, const CumsumArgs& k) {
  const int last = k.x.shape.dim() - 1;
  const Shape kept_shape = part(k.x.shape, 0, last);
  const StridedLoop<2> kept(kept_shape, {part(k.x.strides, 0, last), part(k.y.strides, 0, last)});
  const int64_t n = k.x.shape[last], length = kept.row_length();
  const int64_t x_step = k.x.strides[last], y_step = k.y.strides[last];
  if (n == 0) return;
  visit_all(k.x.dtype, [&]<class T>() {
    const Split rows = split(kept_shape.numel(), std::max<int64_t>(1, detail::kPieceGrain / n));
    parallel_for(rows.blocks, [&](int64_t b) {
      for (int64_t i = rows.begin(b); i < rows.end(b); ++i) {
        const auto offsets = kept.row_offsets(i / length);
        const T* x = k.x.as<T>() + offsets[0] + i % length * kept.row_stride(0);
        T* y = k.y.as<T>() + offsets[1] + i % length * kept.row_stride(1);
        compute_t<T> total = 0;
        for (int64_t c = 0; c < n; ++c) {
          const int64_t at = k.reverse ? n - 1 - c : c;
          total = SumOf<compute_t<T>>::combine(total, static_cast<compute_t<T>>(x[at * x_step]));
          y[at * y_step] = static_cast<T>(total);
        }
      }
    });
  });
}

}  // namespace norma
