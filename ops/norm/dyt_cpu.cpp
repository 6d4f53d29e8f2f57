#include <array>
#include <numbers>

#include "norma/ops/elementwise/packets_cpu.h"
#include "norma/ops/norm/buffers_cpu.h"
#include "norma/ops/norm/dyt_kernels.h"
#include "norma/ops/norm/statistics_cpu.h"

namespace norma {
namespace {

using namespace detail;

/// f(αx + s), and its slope where somebody wants it.
template <class Acc>
void squash(SquashFunction function, Acc alpha, Acc shift, const Acc* x, int64_t n, Acc* t,
            Acc* slope) {
  constexpr Acc top = Acc(2 * std::numbers::inv_sqrtpi);
  switch (function) {
    case SquashFunction::tanh:
      map_packets(
          n, t, [&](const auto& v) { return (alpha * v + shift).tanh().eval(); }, x);
      if (slope)
        for (int64_t c = 0; c < n; ++c) slope[c] = 1 - t[c] * t[c];
      break;
    case SquashFunction::erf:
      map_packets(
          n, t, [&](const auto& v) { return (alpha * v + shift).erf().eval(); }, x);
      if (slope)
        map_packets(
            n, slope,
            [&](const auto& v) { return (exp_of(-(alpha * v + shift).square()) * top).eval(); }, x);
      break;
  }
}

template <class Acc>
void forward(const SquashForwardArgs& k) {
  const int64_t cols = k.x.cols;
  const Weight<Acc> w(k.w, 1, false, cols, cols), b(k.b, 0, false, cols, cols);
  const Acc alpha = value_at<Acc>(k.alpha, 0), shift = k.shift ? value_at<Acc>(k.shift, 0) : Acc(0);
  const Split blocks = row_blocks(k.x.rows, cols, 1);
  parallel_for(blocks.blocks, [&](int64_t block) {
    const Tensor scratch = empty({2, cols}, dtype_of<Acc>);
    Acc *buffer = scratch.span<Acc>().data(), *y = buffer + cols;
    for (int64_t i = blocks.begin(block); i < blocks.end(block); ++i) {
      squash<Acc>(k.function, alpha, shift, load(k.x, i, 0, cols, buffer), cols, y, nullptr);
      for (int64_t c = 0; c < cols; ++c) y[c] = y[c] * w.group(0)[c] + b.group(0)[c];
      store(y, k.y, i, 0, cols);
    }
  });
}

template <class Acc>
void backward(const SquashBackwardArgs& k) {
  const int64_t cols = k.x.cols;
  const Weight<Acc> w(k.w, 1, false, cols, cols);
  const Acc alpha = value_at<Acc>(k.alpha, 0), shift = k.shift ? value_at<Acc>(k.shift, 0) : Acc(0);
  const Split blocks = row_blocks(k.x.rows, cols, 4);
  const int64_t parts = std::max<int64_t>(1, blocks.blocks), length = 2 * cols + 2;
  const Tensor partial = zeros({parts, length}, dtype_of<Acc>, cpu);
  Acc* sums = partial.span<Acc>().data();
  parallel_for(blocks.blocks, [&](int64_t block) {
    const Tensor scratch = empty({4, cols}, dtype_of<Acc>);
    Acc *x_buffer = scratch.span<Acc>().data(), *dy_buffer = x_buffer + cols;
    Acc *t = dy_buffer + cols, *e = t + cols;
    Acc *dw = sums + block * length, *db = dw + cols, *scalars = db + cols;
    for (int64_t i = blocks.begin(block); i < blocks.end(block); ++i) {
      const Acc *x = load(k.x, i, 0, cols, x_buffer), *dy = load(k.dy, i, 0, cols, dy_buffer);
      squash<Acc>(k.function, alpha, shift, x, cols, t, e);
      for (int64_t c = 0; c < cols; ++c) {
        dw[c] += dy[c] * t[c];
        db[c] += dy[c];
        e[c] *= dy[c] * w.group(0)[c];
      }
      const auto itself = [](const auto& p) { return p; };
      const auto product = [](const auto& p, const auto& q) { return p * q; };
      scalars[0] += sum_of<Acc>(cols, product, e, x);
      scalars[1] += sum_of<Acc>(cols, itself, e);
      if (!k.dx) continue;
      for (int64_t c = 0; c < cols; ++c) e[c] *= alpha;
      store(e, k.dx, i, 0, cols);
    }
  });
  const auto fold = [&](const Vec& out, int64_t first) {
    if (!out) return;
    visit_floating(out.dtype, [&]<class W>() {
      for (int64_t c = 0; c < out.n; ++c) {
        Acc sum = 0;
        for (int64_t block = 0; block < parts; ++block) sum += sums[block * length + first + c];
        out.at<W>(c) = static_cast<W>(sum);
      }
    });
  };
  fold(k.dw, 0), fold(k.db, cols), fold(k.dalpha, 2 * cols), fold(k.dshift, 2 * cols + 1);
}

}  // namespace

void run(Cpu, const SquashForwardArgs& k) {
  if (k.x.dtype == float64)
    forward<double>(k);
  else
    forward<float>(k);
}
void run(Cpu, const SquashBackwardArgs& k) {
  if (k.x.dtype == float64)
    backward<double>(k);
  else
    backward<float>(k);
}

}  // namespace norma
