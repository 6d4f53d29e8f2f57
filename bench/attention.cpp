// Causal attention on a GPU, 32768 tokens of width 2048: bench/attention [bf16|fp16].
// The peers' figures, best in the same run: bench/peers/attention_gpu.py.

#include "norma/ops/attention/attention.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string_view>
#include <vector>

#include "norma/core/random.h"
#include "norma/ops/attention/kernels.h"

namespace {

using namespace norma;

/// Milliseconds a call: the median of batches that are given to the GPU without a wait.
template <class F>
double milliseconds(const F& f) {
  using Clock = std::chrono::steady_clock;
  const auto batch = [&](int calls) {
    const auto start = Clock::now();
    for (int i = 0; i < calls; ++i) f();
    synchronize(cuda);
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count() / calls;
  };
  batch(3);
  const int calls = std::clamp(static_cast<int>(10 / batch(1)), 3, 100);
  std::vector<double> times;
  for (int i = 0; i < 7; ++i) times.push_back(batch(calls));
  std::nth_element(times.begin(), times.begin() + 3, times.end());
  return times[3];
}

void measure(const char* what, const Shape& shape, DType dtype, double p = 0) {
  const int64_t batch = shape[0], heads = shape[1], length = shape[2], head_dim = shape[3];
  const auto draw = [&] {  // one head's numbers for all: drawn on the processor
    return randn({1, 1, length, head_dim}, float32)
        .to(dtype)
        .to(cuda)
        .expand({batch, heads, length, head_dim});
  };
  const Tensor q = detail::dense(draw()), k = detail::dense(draw()), v = detail::dense(draw()),
               dy = detail::dense(draw());
  const AttentionOptions o{.causal = true, .p = p, .key = {.key = 1}};
  const auto result = apply<Attention>(q, k, v, o);
  const double forward = milliseconds([&] { apply<Attention>(q, k, v, o); });
  const double backward =
      milliseconds([&] { apply<AttentionBackward>(dy, q, k, v, result.y, result.lse.value, o); });
  const double flops = 2. * static_cast<double>(batch * heads * length * length * head_dim);
  std::printf("%-10s head %3d  T %5d  forward %7.3f ms %4.0f TFLOP/s  backward %7.3f ms %4.0f\n",
              what, static_cast<int>(head_dim), static_cast<int>(length), forward,
              flops / forward / 1e9, backward, 2.5 * flops / backward / 1e9);
  std::fflush(stdout);
}

}  // namespace

int main(int count, char** arguments) {
  if (!Device::best().is_cuda()) {
    std::puts("attention: no GPU");
    return 0;
  }
  const DType dtype = count > 1 && std::string_view(arguments[1]) == "fp16" ? float16 : bfloat16;
  const auto wide = [](int64_t head_dim, int64_t length) {
    return Shape{std::max<int64_t>(1, 32768 / length), 2048 / head_dim, length, head_dim};
  };
  for (int64_t head_dim : {64, 128})
    for (int64_t length : {256, 1024, 4096, 16384}) measure("norma", wide(head_dim, length), dtype);
  measure("norma", wide(32, 1024), dtype);
  measure("norma", wide(256, 1024), dtype);
  measure("dropout", wide(64, 1024), dtype, 0.2);
  measure("char", {64, 6, 256, 64}, dtype);
  measure("char, drop", {64, 6, 256, 64}, dtype, 0.2);
  measure("gpt2", {32, 12, 1024, 64}, dtype);
  measure("toy fp32", {12, 4, 64, 32}, float32);
  measure("float32", wide(64, 1024), float32);
  const PortableAttention only_portable;
  for (int64_t head_dim : {64, 128}) measure("portable", wide(head_dim, 1024), dtype);
  return 0;
}
