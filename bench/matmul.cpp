// Matrix products of the sizes that a small transformer has, and large square ones:
//   build/cpu/bench/matmul
// items/s are multiplications and additions.
#include "norma/ops/matmul/matmul.h"

#include <benchmark/benchmark.h>

#include "norma/core/autograd.h"
#include "norma/core/random.h"

namespace norma {
namespace {

enum class Layout { plain, a_transposed, b_transposed };

void product(benchmark::State& state, Layout layout) {
  const int64_t n = state.range(0), k = state.range(1), m = state.range(2);
  const NoGrad plain;
  const Tensor a = layout == Layout::a_transposed ? randn({k, n}).t() : randn({n, k});
  const Tensor b = layout == Layout::b_transposed ? randn({m, k}).t() : randn({k, m});
  for (auto _ : state) benchmark::DoNotOptimize(matmul(a, b).data());
  state.SetItemsProcessed(state.iterations() * 2 * n * k * m);
}

void sizes(benchmark::internal::Benchmark* b) {
  b->UseRealTime()->ArgNames({"n", "k", "m"});
  b->Args({768, 128, 384})->Args({768, 128, 128})->Args({768, 128, 512})->Args({768, 512, 128});
  b->Args({768, 128, 65})->Args({128, 768, 512})->Args({384, 768, 128})->Args({512, 768, 128});
  b->Args({1024, 1024, 1024})->Args({2048, 2048, 2048});
}
BENCHMARK_CAPTURE(product, plain, Layout::plain)->Apply(sizes);
BENCHMARK_CAPTURE(product, a_transposed, Layout::a_transposed)->Apply(sizes);
BENCHMARK_CAPTURE(product, b_transposed, Layout::b_transposed)->Apply(sizes);

}  // namespace
}  // namespace norma
