#include "norma/core/cuda/launch.cuh"
#include "norma/core/cuda/packed.cuh"
#include "norma/ops/dropout/kernels.h"

namespace norma {
namespace {

constexpr int kThreads = 256;

/// Four elements a thread, which share one call of the generator.
///   bytes  2 · n · sizeof(T);  bound: memory, about 20 integer instructions an element
template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(const T* __restrict__ x, T* __restrict__ y, int64_t n, float p, stats_t<T> scale,
                   RandomKey key) {
  using Acc = stats_t<T>;
  const int64_t group = int64_t{blockIdx.x} * kThreads + threadIdx.x, i = group * 4;
  if (i >= n) return;
  const auto words = random_words(key, static_cast<uint64_t>(group));
  const auto kept = [&](int e, T v) {
    const float uniform = static_cast<float>(words[e] >> 8) * 0x1p-24F;
    return convert<T>(uniform < p ? Acc(0) : convert<Acc>(v) * scale);
  };
  if (i + 4 <= n) {
    auto v = load<4, kAligned>(x + i);
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = kept(e, v[e]);
    store<kAligned>(y + i, v);
  } else {
    for (int e = 0; i + e < n; ++e) y[i + e] = kept(e, x[i + e]);
  }
}

}  // namespace

void run(Cuda on, const DropoutArgs& k) {
  visit_floating(k.x.dtype, [&]<class T>() {
    const auto* x = k.x.as<T>();
    auto* y = k.y.as<T>();
    const bool aligned = is_aligned<4>(x) && is_aligned<4>(y);
    launch(on, {.grid = grid_for(ceil_div(k.x.n, int64_t{4}), kThreads), .block = dim3(kThreads)},
           aligned ? dropout_kernel<T, true> : dropout_kernel<T, false>, x, y, k.x.n,
           static_cast<float>(k.p), static_cast<stats_t<T>>(1 / (1 - k.p)), k.key);
  });
}

}  // namespace norma
