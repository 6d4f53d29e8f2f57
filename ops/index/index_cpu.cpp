#include <algorithm>
#include <numeric>

#include "norma/core/tensor.h"
#include "norma/ops/elementwise/operands_cpu.h"
#include "norma/ops/index/kernels.h"

namespace norma {
namespace {

Split row_blocks(int64_t rows, int64_t cols) {
  return split(rows, std::max<int64_t>(1, detail::kPieceGrain / std::max<int64_t>(1, cols)));
}

template <class I>
void require_inside(std::string_view name, const ConstRows& index, int64_t size) {
  for (int64_t r = 0; r < index.rows; ++r)
    for (int64_t c = 0; c < index.cols; ++c) {
      const int64_t at = index.row<I>(r)[c];
      if (at < 0 || at >= size)
        throw ValueError("{}: index must be below {}, but in row {} element {} is {}", name, size,
                         r, c, at);
    }
}

}  // namespace

void run(Cpu, const GatherArgs& k) {
  visit_index(k.index.dtype, [&]<class I>() {
    require_inside<I>("gather", k.index, k.x.cols);
    visit_all(k.x.dtype, [&]<class T>() {
      const Split blocks = row_blocks(k.y.rows, k.y.cols);
      parallel_for(blocks.blocks, [&](int64_t b) {
        for (int64_t r = blocks.begin(b); r < blocks.end(b); ++r)
          for (int64_t c = 0; c < k.y.cols; ++c)
            k.y.row<T>(r)[c] = k.x.row<T>(r)[k.index.row<I>(r)[c]];
      });
    });
  });
}

void run(Cpu, const ScatterArgs& k) {
  visit_index(k.index.dtype, [&]<class I>() {
    require_inside<I>("scatter", k.index, k.y.cols);
    visit_all(k.src.dtype, [&]<class T>() {
      using Acc = detail::compute_t<T>;
      const Split blocks = row_blocks(k.y.rows, k.y.cols);
      const Tensor sums = empty({blocks.blocks, k.y.cols}, dtype_of<Acc>);
      parallel_for(blocks.blocks, [&](int64_t b) {
        Acc* sum = sums.span<Acc>().data() + b * k.y.cols;
        for (int64_t r = blocks.begin(b); r < blocks.end(b); ++r) {
          std::fill_n(sum, k.y.cols, Acc(0));
          for (int64_t c = 0; c < k.src.cols; ++c)
            sum[k.index.row<I>(r)[c]] += static_cast<Acc>(k.src.row<T>(r)[c]);
          for (int64_t c = 0; c < k.y.cols; ++c) k.y.row<T>(r)[c] = static_cast<T>(sum[c]);
        }
      });
    });
  });
}

void run(Cpu, const TopKArgs& k) {
  const int64_t cols = k.x.cols, wanted = k.indices.cols;
  visit_all(k.x.dtype, [&]<class T>() {
    using Acc = detail::compute_t<T>;
    const Split blocks = row_blocks(k.x.rows, cols);
    const Tensor orders = empty({blocks.blocks, cols}, int64);
    parallel_for(blocks.blocks, [&](int64_t b) {
      int64_t* order = orders.span<int64_t>().data() + b * cols;
      for (int64_t r = blocks.begin(b); r < blocks.end(b); ++r) {
        const T* x = k.x.row<T>(r);
        const auto larger = [&](int64_t i, int64_t j) {
          const Acc u = static_cast<Acc>(x[i]), v = static_cast<Acc>(x[j]);
          if (u != u || v != v) return u != u && (v == v || i < j);
          return u > v || (u == v && i < j);
        };
        std::iota(order, order + cols, int64_t{0});
        std::partial_sort(order, order + wanted, order + cols, larger);
        std::copy_n(order, wanted, k.indices.row<int64_t>(r));
      }
    });
  });
}

}  // namespace norma
