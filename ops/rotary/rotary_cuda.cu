#include "norma/core/cuda/numeric.cuh"
#include "norma/core/cuda/strided.cuh"
#include "norma/ops/rotary/kernels.h"

namespace norma {
namespace {

/// A thread a pair: y = (u cos − v sin, u sin + v cos).
template <class T>
__global__ void __launch_bounds__(256)
    rotary_kernel(const T* __restrict__ x, StridedIndex<1> rows, int64_t x_step, int64_t pairs,
                  int64_t length, bool halves, const stats_t<T>* __restrict__ cos,
                  const stats_t<T>* __restrict__ sin, int64_t table_stride, T* __restrict__ y) {
  using Acc = stats_t<T>;
  const int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (i >= rows.count * pairs) return;
  const int64_t row = i / pairs, p = i % pairs;
  const int64_t a = halves ? p : 2 * p, b = a + (halves ? pairs : 1);
  int64_t at[1];
  rows.offsets(row, at);
  const int64_t angle = row % length * table_stride + p;
  const Acc u = convert<Acc>(x[at[0] + a * x_step]), v = convert<Acc>(x[at[0] + b * x_step]);
  T* out = y + row * 2 * pairs;
  out[a] = convert<T>(u * cos[angle] - v * sin[angle]);
  out[b] = convert<T>(u * sin[angle] + v * cos[angle]);
}

}  // namespace

void run(Cuda on, const RotaryArgs& k) {
  const int last = k.x.shape.dim() - 1;
  const int64_t cols = k.x.shape[last], length = k.x.shape[last - 1];
  const auto leading = [&](const Shape& s) {
    return Shape(std::span(s.begin(), s.begin() + last));
  };
  const StridedIndex<1> rows(detail::StridedLoop<1>(leading(k.x.shape), {leading(k.x.strides)}));
  visit_floating(k.x.dtype, [&]<class T>() {
    using Acc = stats_t<T>;
    launch(on, {.grid = grid_for(rows.count * (cols / 2), 256), .block = dim3(256)},
           rotary_kernel<T>, k.x.as<T>(), rows, k.x.strides[last], cols / 2, length, k.halves,
           k.cos.row<Acc>(0), k.sin.row<Acc>(0), k.cos.row_stride, k.y.as<T>());
  });
}

}  // namespace norma
