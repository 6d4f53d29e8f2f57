// Causal conv1d, selective scan and SSD, forward and backward, where Device::best() is, beside a
// copy of x:
//   build/cpu/bench/mamba [WORD …]     seconds on a processor: small sizes
//   build/cuda/bench/mamba [WORD …]    the sizes of bench/peers
// Only cases whose names hold one of the words; --once runs each once, for a profiler. The word
// "lengths" runs T from 256 to 131072 instead. The peak is of forward and backward, without inputs.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "norma/core/allocator.h"
#include "norma/core/autograd.h"
#include "norma/core/random.h"
#include "norma/ops/conv1d/conv1d.h"
#include "norma/ops/elementwise/unary.h"
#include "norma/ops/scan/scan.h"
#include "norma/ops/ssd/ssd.h"

namespace norma {
namespace {

struct Choice {
  std::vector<std::string> words;
  bool once = false;

  bool wants(const std::string& name) const {
    return words.empty() || std::any_of(words.begin(), words.end(), [&](const std::string& w) {
             return name.find(w) != std::string::npos;
           });
  }
};
Choice choice;

/// The median time of one of several runs, in milliseconds.
double milliseconds(const std::function<void()>& run) {
  const Device device = default_device();
  if (choice.once) {
    run();
    synchronize(device);
    return 1;
  }
  const int together = device.is_cuda() ? 10 : 1;
  std::vector<double> times;
  for (int i = 0; i < 9; ++i) {
    synchronize(device);
    const auto begin = std::chrono::steady_clock::now();
    for (int j = 0; j < together; ++j) run();
    synchronize(device);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    if (i > 1) times.push_back(took.count() / together);
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2),
                   times.end());
  return times[times.size() / 2];
}

void report(const char* what, DType dtype, const Tensor& x, double forward_tensors,
            double backward_tensors, const std::function<Tensor()>& forward,
            const std::vector<Tensor>& leaves) {
  const Tensor target = empty_like(x);
  const double copy = milliseconds([&] { target.copy_(x); });
  const double ahead = milliseconds([&] {
    const NoGrad plain;
    forward();
  });
  for (const Tensor& t : leaves) t.requires_grad_();
  const Tensor dy = randn(x.shape()).to(dtype);
  const int64_t before = memory_stats(default_device()).allocated;
  reset_peak(default_device());
  const Tensor y = forward();
  const double back = milliseconds([&] { grad({y}, leaves, {dy}, {.retain_graph = true}); });
  for (const Tensor& t : leaves) t.requires_grad_(false);
  const auto peak = static_cast<double>(memory_stats(default_device()).peak - before);
  std::printf(
      "%-36s %-8s forward %8.3f ms (%3.0f %% of copy)  backward %8.3f ms (%3.0f %%)  "
      "peak %5.0f MiB\n",
      what, std::string(to_string(dtype)).c_str(), ahead, 50 * copy * forward_tensors / ahead, back,
      50 * copy * backward_tensors / back, peak / 0x1p20);
  std::fflush(stdout);
}

void conv1d(const char* what, int64_t batch, int64_t length, int64_t channels, DType dtype) {
  if (!choice.wants(what)) return;
  const Tensor x = randn({batch, length, channels}).to(dtype), w = randn({channels, 4}),
               b = randn({channels});
  report(what, dtype, x, 2, 3, [&] { return causal_conv1d(x, w, {.b = b}).y; }, {x, w, b});
}
void scan(const char* what, int64_t batch, int64_t length, int64_t channels, int64_t n,
          DType dtype) {
  if (!choice.wants(what)) return;
  const Tensor x = randn({batch, length, channels}).to(dtype), dt = randn(x.shape()).to(dtype);
  const Tensor z = randn(x.shape()).to(dtype), a = neg(exp(randn({channels, n})));
  const Tensor b = randn({batch, length, n}).to(dtype), c = randn(b.shape()).to(dtype);
  const Tensor d = randn({channels}), bias = randn({channels});
  report(what, dtype, x, 4, 7,
         [&] { return selective_scan(x, dt, a, b, c, {.d = d, .z = z, .dt_bias = bias}).y; },
         {x, dt, a, b, c, d, z, bias});
}
void state_space_dual(const char* what, int64_t batch, int64_t length, int64_t heads,
                      int64_t head_dim, int64_t n, DType dtype) {
  if (!choice.wants(what)) return;
  const Tensor x = randn({batch, length, heads, head_dim}).to(dtype);
  const Tensor dt = randn({batch, length, heads}).to(dtype), a = neg(exp(randn({heads})));
  const Tensor b = randn({batch, length, 1, n}).to(dtype), c = randn(b.shape()).to(dtype);
  const Tensor d = randn({heads}), bias = randn({heads});
  report(what, dtype, x, 2, 3, [&] { return ssd(x, dt, a, b, c, {.d = d, .dt_bias = bias}).y; },
         {x, dt, a, b, c, d, bias});
}

void run_all() {
  if (default_device().is_cuda()) {
    for (DType dtype : {bfloat16, float32}) {
      conv1d("conv1d B 8, T 2048, C 1792", 8, 2048, 1792, dtype);
      scan("scan B 8, T 2048, E 1536, N 16", 8, 2048, 1536, 16, dtype);
      scan("scan B 1, T 16384, E 1536, N 16", 1, 16384, 1536, 16, dtype);
      state_space_dual("ssd B 8, T 2048, 24 × 64, N 128", 8, 2048, 24, 64, 128, dtype);
    }
    state_space_dual("ssd B 64, T 256, 24 × 64, N 128", 64, 256, 24, 64, 128, bfloat16);
    state_space_dual("ssd B 1, T 16384, 24 × 64, N 128", 1, 16384, 24, 64, 128, bfloat16);
  } else {
    conv1d("conv1d B 12, T 64, C 512", 12, 64, 512, float32);
    conv1d("conv1d B 4, T 1024, C 1024", 4, 1024, 1024, float32);
    scan("scan B 12, T 64, E 256, N 16", 12, 64, 256, 16, float32);
    scan("scan B 2, T 1024, E 1024, N 16", 2, 1024, 1024, 16, float32);
    state_space_dual("ssd B 12, T 64, 4 × 64, N 128", 12, 64, 4, 64, 128, float32);
    state_space_dual("ssd B 2, T 1024, 16 × 64, N 128", 2, 1024, 16, 64, 128, float32);
  }
}

/// Time and memory are linear in T: the word "lengths" asks for these.
void run_lengths() {
  for (int64_t length = 256; length <= 131072; length *= 2) {
    const std::string name = "lengths B 1, T " + std::to_string(length);
    scan((name + ", scan").c_str(), 1, length, 1536, 16, bfloat16);
    state_space_dual((name + ", ssd").c_str(), 1, length, 24, 64, 128, bfloat16);
  }
}

}  // namespace
}  // namespace norma

int main(int argc, char** argv) {
  for (const std::string& word : std::vector<std::string>(argv + 1, argv + argc))
    if (word == "--once")
      norma::choice.once = true;
    else
      norma::choice.words.push_back(word);
  const norma::DefaultDevice device(norma::Device::best());
  if (!norma::choice.words.empty() && norma::choice.words[0] == "lengths")
    norma::run_lengths();
  else
    norma::run_all();
}
