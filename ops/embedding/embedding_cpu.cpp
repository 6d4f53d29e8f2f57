#include <algorithm>

#include "norma/core/tensor.h"
#include "norma/ops/elementwise/operands_cpu.h"
#include "norma/ops/embedding/kernels.h"

namespace norma {
namespace {

template <class I>
void require_inside(const ConstVec& indices, int64_t rows) {
  for (int64_t i = 0; i < indices.n; ++i) {
    const int64_t at = indices.at<I>(i);
    if (at < 0 || at >= rows)
      throw ValueError(
          "embedding: indices must be below {}, the rows of weight, but index {} is {}", rows, i,
          at);
  }
}

template <class I>
void add_or_round(const EmbeddingForwardArgs& k, const Split& rows) {
  visit_rows(k.y.dtype, k.table.dtype, [&]<class T, class W>() {
    using Acc = detail::compute_t<W>;
    parallel_for(rows.blocks, [&](int64_t b) {
      for (int64_t i = rows.begin(b); i < rows.end(b); ++i) {
        const W* row = k.table.row<W>(k.indices.at<I>(i));
        T* y = k.y.row<T>(i);
        if (!k.positions) {
          for (int64_t c = 0; c < k.y.cols; ++c) y[c] = static_cast<T>(static_cast<Acc>(row[c]));
          continue;
        }
        const W* place = k.positions.row<W>(k.places.first + i % k.places.length);
        for (int64_t c = 0; c < k.y.cols; ++c)
          y[c] = static_cast<T>(static_cast<Acc>(row[c]) + static_cast<Acc>(place[c]));
      }
    });
  });
}

void sum_positions(const EmbeddingBackwardArgs& k) {
  const Rows& d = k.dpositions;
  const int64_t passes = k.indices.n / k.places.length;
  visit_rows(k.dy.dtype, d.dtype, [&]<class T, class W>() {
    using Acc = detail::compute_t<W>;
    parallel_for(d.rows, [&](int64_t r) {
      const int64_t place = r - k.places.first;
      const bool touched = place >= 0 && place < k.places.length;
      for (int64_t c = 0; c < d.cols; ++c) {
        Acc sum = 0;
        for (int64_t n = 0; touched && n < passes; ++n)
          sum += static_cast<Acc>(k.dy.row<T>(n * k.places.length + place)[c]);
        d.row<W>(r)[c] = static_cast<W>(sum);
      }
    });
  });
}

}  // namespace

void run(Cpu, const EmbeddingForwardArgs& k) {
  visit_index(k.indices.dtype, [&]<class I>() {
    require_inside<I>(k.indices, k.table.rows);
    const int64_t width = k.y.cols;
    if (width == 0) return;
    const Split rows = split(k.indices.n, std::max<int64_t>(1, detail::kPieceGrain / width));
    if (k.positions || k.y.dtype != k.table.dtype) return add_or_round<I>(k, rows);
    visit_all(k.y.dtype, [&]<class T>() {
      parallel_for(rows.blocks, [&](int64_t b) {
        for (int64_t i = rows.begin(b); i < rows.end(b); ++i)
          std::copy_n(k.table.row<T>(k.indices.at<I>(i)), width, k.y.row<T>(i));
      });
    });
  });
}

void run(Cpu, const EmbeddingBackwardArgs& k) {
  const int64_t width = k.dtable.cols, n = k.indices.n;
  if (k.dpositions) sum_positions(k);
  if (width == 0 || k.dtable.rows == 0) return;
  visit_index(k.indices.dtype, [&]<class I>() {
    visit_rows(k.dy.dtype, k.dtable.dtype, [&]<class T, class W>() {
      using Acc = detail::compute_t<W>;
      // Each task owns some columns and walks all places in order: no two write the same element.
      const Split tiles =
          split(width, std::max<int64_t>(16, detail::kPieceGrain / std::max<int64_t>(1, n)));
      const Tensor sums = empty({k.dtable.rows, width}, dtype_of<Acc>);
      Acc* table = sums.span<Acc>().data();
      parallel_for(tiles.blocks, [&](int64_t t) {
        const int64_t first = tiles.begin(t), size = tiles.end(t) - first;
        for (int64_t v = 0; v < k.dtable.rows; ++v)
          std::fill_n(table + v * width + first, size, Acc(0));
        for (int64_t i = 0; i < n; ++i) {
          Acc* row = table + k.indices.at<I>(i) * width + first;
          const T* dy = k.dy.row<T>(i) + first;
          for (int64_t c = 0; c < size; ++c) row[c] += static_cast<Acc>(dy[c]);
        }
        for (int64_t v = 0; v < k.dtable.rows; ++v)
          for (int64_t c = 0; c < size; ++c)
            k.dtable.row<W>(v)[first + c] = static_cast<W>(table[v * width + first + c]);
      });
    });
  });
}

}  // namespace norma
