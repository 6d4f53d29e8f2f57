// What the framework itself costs on tiny tensors, allocation and release included:
//   build/cpu/bench/engine
#include <benchmark/benchmark.h>

#include "norma/core/autograd.h"
#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/norm/rms_norm.h"
#include "norma/ops/reduce/reduce.h"

namespace norma {
namespace {

void add_8_floats(benchmark::State& state) {
  const Tensor a = randn({8}).requires_grad_(), b = randn({8}).requires_grad_();
  for (auto _ : state) benchmark::DoNotOptimize(a + b);
}
void add_8_floats_unrecorded(benchmark::State& state) {
  const Tensor a = randn({8}), b = randn({8});
  for (auto _ : state) benchmark::DoNotOptimize(a + b);
}
void rms_norm_1x64(benchmark::State& state) {
  const Tensor x = randn({1, 64}).requires_grad_(), w = ones({64}).requires_grad_();
  for (auto _ : state) benchmark::DoNotOptimize(rms_norm(x, w));
}
/// items/s are nodes of a chain of additions, swept.
void backward_a_node(benchmark::State& state) {
  const Tensor x = randn({8}).requires_grad_(), one = ones({8}), dy = ones({8});
  constexpr int kNodes = 10000;
  Tensor y = x;
  for (int i = 0; i < kNodes; ++i) y = y + one;
  for (auto _ : state) benchmark::DoNotOptimize(grad({y}, {x}, {dy}, {.retain_graph = true}));
  state.SetItemsProcessed(state.iterations() * kNodes);
}
BENCHMARK(add_8_floats);
BENCHMARK(add_8_floats_unrecorded);
BENCHMARK(rms_norm_1x64);
BENCHMARK(backward_a_node);

}  // namespace
}  // namespace norma
