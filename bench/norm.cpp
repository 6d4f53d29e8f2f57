// The norm family, forward and backward, at many sizes, beside copies on as many threads:
//   build/cpu/bench/norm
// bytes/s count each tensor once: forward x and y, backward x, dy and dx.
#include <benchmark/benchmark.h>

#include "copy.h"
#include "norma/core/autograd.h"
#include "norma/core/random.h"
#include "norma/ops/norm/gated_norm.h"
#include "norma/ops/norm/layer_norm.h"
#include "norma/ops/norm/rms_norm.h"

namespace norma {
namespace {

enum class Kind { rms, layer, gated };

Tensor apply_norm(Kind kind, const Tensor& x, const Tensor& w, const Tensor& b, const Tensor& z) {
  switch (kind) {
    case Kind::rms:
      return rms_norm(x, w);
    case Kind::layer:
      return layer_norm(x, w, b);
    case Kind::gated:
      return gated_norm(x, z, w);
  }
  return x;
}

void forward(benchmark::State& state, Kind kind) {
  const Shape shape{state.range(0), state.range(1)};
  const Tensor x = randn(shape), z = randn(shape), w = ones({shape[1]}), b = zeros({shape[1]});
  const NoGrad plain;
  for (auto _ : state) benchmark::DoNotOptimize(apply_norm(kind, x, w, b, z).data());
  state.SetBytesProcessed(state.iterations() * x.numel() * 4 * (kind == Kind::gated ? 3 : 2));
}
void backward(benchmark::State& state, Kind kind) {
  const Shape shape{state.range(0), state.range(1)};
  const Tensor x = randn(shape).requires_grad_(), w = ones({shape[1]}).requires_grad_(),
               b = zeros({shape[1]}).requires_grad_(), z = randn(shape), dy = randn(shape);
  const Tensor y = apply_norm(kind, x, w, b, z);
  for (auto _ : state)
    benchmark::DoNotOptimize(grad({y}, {x, w}, {dy}, {.retain_graph = true})[0].data());
  state.SetBytesProcessed(state.iterations() * x.numel() * 4 * (kind == Kind::gated ? 5 : 3));
}
template <class Copy>
void copy(benchmark::State& state, const Copy& call) {
  const int64_t bytes = state.range(0) * state.range(1) * 4;
  const Tensor x = randn({bytes / 4}), y = zeros({bytes / 4});
  for (auto _ : state) {
    call(static_cast<const std::byte*>(x.data()), static_cast<std::byte*>(y.data()), bytes);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * bytes * 2);
}

void sizes(benchmark::internal::Benchmark* b) {
  b->UseRealTime()->ArgNames({"rows", "cols"});
  for (int64_t rows : {1, 64, 1024, 65536})
    for (int64_t cols : {64, 256, 1024, 4096}) b->Args({rows, cols});
}
BENCHMARK_CAPTURE(copy, memcpy, copy_by_memcpy)->Apply(sizes);
BENCHMARK_CAPTURE(copy, past_the_caches, copy_past_the_caches)->Apply(sizes);
BENCHMARK_CAPTURE(forward, rms, Kind::rms)->Apply(sizes);
BENCHMARK_CAPTURE(forward, layer, Kind::layer)->Apply(sizes);
BENCHMARK_CAPTURE(forward, gated, Kind::gated)->Apply(sizes);
BENCHMARK_CAPTURE(backward, rms, Kind::rms)->Apply(sizes);
BENCHMARK_CAPTURE(backward, layer, Kind::layer)->Apply(sizes);
BENCHMARK_CAPTURE(backward, gated, Kind::gated)->Apply(sizes);

}  // namespace
}  // namespace norma
