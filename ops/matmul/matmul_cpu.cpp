#include <algorithm>

#include "norma/core/parallel.h"
#include "norma/core/strided.h"
#include "norma/core/tensor.h"
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

/// Rows a task: at most about 4 million multiplications, 50 µs, and as many tasks for each thread.
/// What a row becomes does not depend on the task it is in.
Split row_panels(int64_t n, int64_t m, int64_t k) {
  const int64_t threads = num_threads();
  const int64_t rows = std::clamp<int64_t>((int64_t{1} << 22) / (m * k), kTileRows, 8 * kTileRows);
  const int64_t tasks = round_up((n + rows - 1) / rows, threads);
  return split(n, round_up((n + tasks - 1) / tasks, kTileRows));
}

/// Packs b on all threads.
template <class T>
void pack_shared(const Slab<T>& b, T* packed) {
  constexpr int64_t kElements = 1 << 14;  // a task's
  if (b.col_stride == 1) {
    const int64_t rows = std::clamp<int64_t>(kElements / b.cols, 1, kDepth);
    const Split part = split(b.rows, rows);
    parallel_for(part.blocks, [&](int64_t i) {
      for (int64_t p = part.begin(i); p < part.end(i);) {
        const int64_t last = std::min(part.end(i), p / kDepth * kDepth + kDepth);
        detail::pack_dense_rows(b, p, last, packed);
        p = last;
      }
    });
    return;
  }
  const Split slivers = split(PackedB<T>::sliver_count(b.cols),
                              std::max<int64_t>(1, kElements / (b.rows * kTileCols<T>)));
  parallel_for(slivers.blocks, [&](int64_t i) {
    for (int64_t s = slivers.begin(i); s < slivers.end(i); ++s) pack_sliver(b, s, packed);
  });
}

/// One large product on all threads.
template <class T>
void multiply_shared(const Slab<T>& a, const Slab<T>& b, const T* bias, T* c) {
  const int64_t n = a.rows, m = b.cols, k = a.cols;
  const Tensor b_scratch = empty({PackedB<T>::size(k, m)}, dtype_of<T>);
  T* packed_b = b_scratch.span<T>().data();
  const PackedB<T> packed{packed_b, PackedB<T>::sliver_count(m)};
  pack_shared(b, packed_b);
  const Split panels = row_panels(n, m, k);
  const int64_t size = round_up(panels.size, kTileRows) * std::min(k, kDepth);
  const Tensor a_scratch = empty({panels.blocks, size}, dtype_of<T>);
  parallel_for(panels.blocks, [&](int64_t p) {
    multiply_rows(a, packed, {c, m, m, bias}, panels.begin(p), panels.end(p),
                  a_scratch.span<T>().data() + p * size, [&](int64_t) {
                    return Band{0, k, m};
                  });
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
  const int64_t size = detail::multiply_scratch<T>(n, m, k);
  const Tensor scratch = empty({tasks.blocks, size}, dtype_of<T>);
  parallel_for(tasks.blocks, [&](int64_t t) {
    for (int64_t i = tasks.begin(t); i < tasks.end(t); ++i) {
      const Operands o = operands(i);
      detail::multiply_alone<T>(o.a, o.b, {o.c, m, m, bias}, scratch.span<T>().data() + t * size);
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
