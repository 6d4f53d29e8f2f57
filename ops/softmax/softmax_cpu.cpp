#include "norma/core/tensor.h"
#include "norma/ops/elementwise/operands_cpu.h"
#include "norma/ops/softmax/kernels.h"
#include "norma/ops/softmax/rows_cpu.h"

namespace norma {
namespace {

/// One row in Acc: f(a), or f(dy = a, y = b). `y` may be what a or b point to.
template <class Acc>
void evaluate(SoftmaxFunction function, const Acc* a, const Acc* b, Acc* y, Acc* buffer,
              int64_t n) {
  using enum SoftmaxFunction;
  switch (function) {
    case softmax: {
      const Acc scale = 1 / detail::exponentials(a, n, y).sum;
      for (int64_t c = 0; c < n; ++c) y[c] *= scale;
      break;
    }
    case log_softmax: {
      const Acc lse = detail::exponentials(a, n, buffer).lse();
      for (int64_t c = 0; c < n; ++c) y[c] = a[c] - lse;
      break;
    }
    case logsumexp:
      y[0] = detail::exponentials(a, n, buffer).lse();
      break;
    case softmax_backward: {
      const Acc dot = detail::sum_lanes<Acc>(n, [&](int64_t c) { return a[c] * b[c]; });
      for (int64_t c = 0; c < n; ++c) y[c] = b[c] * (a[c] - dot);
      break;
    }
    case log_softmax_backward: {
      const Acc sum = detail::sum_lanes<Acc>(n, [&](int64_t c) { return a[c]; });
      detail::map_packets(
          n, buffer, [](const auto& v) { return detail::exp_of(v); }, b);
      for (int64_t c = 0; c < n; ++c) y[c] = a[c] - buffer[c] * sum;
      break;
    }
  }
}

}  // namespace

void run(Cpu, const SoftmaxArgs& k) {
  const int64_t cols = k.a.cols;
  if (k.a.rows == 0 || k.y.cols == 0) return;
  visit_floating(k.a.dtype, [&]<class T>() {
    using Acc = stats_t<T>;
    const Split rows =
        split(k.a.rows, std::max<int64_t>(1, detail::kPieceGrain / std::max<int64_t>(1, cols)));
    constexpr int kBuffers = 4;
    const int64_t width = std::max<int64_t>(1, cols);
    const Tensor scratch = empty({rows.blocks, kBuffers, width}, dtype_of<Acc>);
    parallel_for(rows.blocks, [&](int64_t block) {
      Acc* left = scratch.span<Acc>().data() + block * kBuffers * width;
      Acc *right = left + width, *out = right + width, *buffer = out + width;
      for (int64_t i = rows.begin(block); i < rows.end(block); ++i) {
        const Acc* a = detail::load(k.a.row<T>(i), 1, 0, cols, left).data;
        const Acc* b = k.b ? detail::load(k.b.row<T>(i), 1, 0, cols, right).data : nullptr;
        T* y = k.y.row<T>(i);
        if constexpr (std::is_same_v<T, Acc>) {
          evaluate(k.function, a, b, y, buffer, cols);
        } else {
          evaluate(k.function, a, b, out, buffer, cols);
          for (int64_t c = 0; c < k.y.cols; ++c) y[c] = static_cast<T>(out[c]);
        }
      }
    });
  });
}

}  // namespace norma
