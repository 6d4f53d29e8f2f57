#include "norma/core/tensor.h"
#include "norma/ops/elementwise/operands_cpu.h"
#include "norma/ops/rotary/kernels.h"

namespace norma {
namespace {

/// One row: pairs (x[a], x[a + step]) with a running by `by`, in elements of x.
template <class T, class Acc>
void turn(const T* x, int64_t x_stride, T* y, const Acc* cos, const Acc* sin, int64_t pairs,
          int64_t by, int64_t step) {
  for (int64_t i = 0; i < pairs; ++i) {
    const int64_t a = i * by, b = a + step;
    const Acc u = static_cast<Acc>(x[a * x_stride]), v = static_cast<Acc>(x[b * x_stride]);
    y[a] = static_cast<T>(u * cos[i] - v * sin[i]);
    y[b] = static_cast<T>(u * sin[i] + v * cos[i]);
  }
}

}  // namespace

void run(Cpu, const RotaryArgs& k) {
  const int last = k.x.shape.dim() - 1;
  const int64_t cols = k.x.shape[last], length = k.x.shape[last - 1];
  const int64_t rows = k.x.shape.numel() / std::max<int64_t>(1, cols);
  if (rows == 0 || cols == 0) return;
  const bool halves = k.halves;
  visit_floating(k.x.dtype, [&]<class T>() {
    using Acc = stats_t<T>;
    const Split blocks = split(rows, std::max<int64_t>(1, detail::kPieceGrain / cols));
    parallel_for(blocks.blocks, [&](int64_t block) {
      for (int64_t i = blocks.begin(block); i < blocks.end(block); ++i) {
        int64_t rest = i, offset = 0;
        for (int d = last - 1; d >= 0; --d) {
          offset += rest % k.x.shape[d] * k.x.strides[d];
          rest /= k.x.shape[d];
        }
        turn(k.x.as<T>() + offset, k.x.strides[last], k.y.as<T>() + i * cols,
             k.cos.row<Acc>(i % length), k.sin.row<Acc>(i % length), cols / 2, halves ? 1 : 2,
             halves ? cols / 2 : 1);
      }
    });
  });
}

}  // namespace norma
