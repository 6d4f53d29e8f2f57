#include <Eigen/Core>

#include "norma/core/parallel.h"
#include "norma/core/strided.h"
#include "norma/ops/matmul/kernels.h"

namespace norma {
namespace {

template <class T, int kOrder>
using ConstMatrix = Eigen::Map<const Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, kOrder>, 0,
                               Eigen::OuterStride<>>;
template <class T>
using Matrix = Eigen::Map<Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>, 0,
                          Eigen::OuterStride<>>;

/// One matrix among the batch: sizes and the strides of rows and columns, one of which is 1.
template <class T>
struct Slab {
  const T* data;
  int64_t rows, cols, row_stride, col_stride;

  Slab block(int64_t row, int64_t n, int64_t col, int64_t m) const {
    return {data + row * row_stride + col * col_stride, n, m, row_stride, col_stride};
  }
};

/// f(the matrix as an Eigen map in its storage order).
template <class T, class F>
void visit_order(const Slab<T>& s, const F& f) {
  if (s.col_stride == 1 || s.cols == 1) {
    // A single row may have any stride, which Eigen asserts to be at least its length.
    const Eigen::OuterStride<> outer(std::max(s.row_stride, s.cols));
    f(ConstMatrix<T, Eigen::RowMajor>(s.data, s.rows, s.cols, outer));
  } else {
    const Eigen::OuterStride<> outer(std::max(s.col_stride, s.rows));
    f(ConstMatrix<T, Eigen::ColMajor>(s.data, s.rows, s.cols, outer));
  }
}

template <class T>
void multiply(const Slab<T>& a, const Slab<T>& b, const T* bias, T* c, int64_t c_stride) {
  Matrix<T> out(c, a.rows, b.cols, Eigen::OuterStride<>(c_stride));
  visit_order(a, [&](const auto& left) {
    visit_order(b, [&](const auto& right) { out.noalias() = left * right; });
  });
  if (bias) out.rowwise() += Eigen::Map<const Eigen::Matrix<T, 1, Eigen::Dynamic>>(bias, b.cols);
}

/// Panels along the longer side of c, a multiple of what Eigen's kernels take at once and large
/// enough to pay for packing the other operand anew.
Split panels_of(int64_t n, int64_t m, int64_t k) {
  const int64_t longer = std::max(n, m), other = std::max<int64_t>(1, std::min(n, m) * k);
  constexpr int64_t kWork = 1 << 22;  // multiplications a task: about 50 µs
  const int64_t size = std::max<int64_t>({48, kWork / other, longer / 64});
  return split(longer, (size + 47) / 48 * 48);
}

}  // namespace

void run(Cpu, const MatmulArgs& args) {
  const int d = args.c.shape.dim();
  const auto matrix_of = [&](const Shape& s, int64_t i) { return s[d - 2 + static_cast<int>(i)]; };
  const int64_t n = matrix_of(args.c.shape, 0), m = matrix_of(args.c.shape, 1);
  const int64_t k = args.a.shape[d - 1];
  const auto lead = [&](const Shape& s) { return Shape(std::span(s.begin(), s.end() - 2)); };
  const detail::StridedLoop<3> batch(
      lead(args.c.shape), {lead(args.a.strides), lead(args.b.strides), lead(args.c.strides)});
  if (args.c.shape.numel() == 0) return;
  const Split panels = panels_of(n, m, k);
  const int64_t products = batch.rows() * batch.row_length();
  // Small products share a task: waking a thread costs as much as 10⁵ multiplications.
  const Split tasks = split(products * panels.blocks,
                            std::max<int64_t>(1, (1 << 18) / std::max<int64_t>(1, n * m * k)));
  const auto run_task = [&]<class T>(int64_t task, T) {
    const int64_t product = task / panels.blocks, panel = task % panels.blocks;
    auto offsets = batch.row_offsets(product / batch.row_length());
    for (int i = 0; i < 3; ++i) offsets[i] += product % batch.row_length() * batch.row_stride(i);
    const Slab<T> a{args.a.as<T>() + offsets[0], n, k, args.a.strides[d - 2],
                    args.a.strides[d - 1]};
    const Slab<T> b{args.b.as<T>() + offsets[1], k, m, args.b.strides[d - 2],
                    args.b.strides[d - 1]};
    T* c = args.c.as<T>() + offsets[2];
    const T* bias = args.bias ? args.bias.as<T>() : nullptr;
    const int64_t first = panels.begin(panel), size = panels.end(panel) - first;
    if (n >= m)
      multiply(a.block(first, size, 0, k), b, bias, c + first * m, m);
    else
      multiply(a, b.block(0, k, first, size), bias ? bias + first : nullptr, c + first, m);
  };
  parallel_for(tasks.blocks, [&](int64_t t) {
    for (int64_t task = tasks.begin(t); task < tasks.end(t); ++task) {
      if (args.c.dtype == float64)
        run_task(task, double{});
      else
        run_task(task, float{});
    }
  });
}

}  // namespace norma
