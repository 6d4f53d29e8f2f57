// The norm family on a GPU, kernels alone, as shares of a copy on the device:
//   build/cuda/bench/norm_cuda [--kind rms] [--dtype bfloat16] [--cols 256,1024] [--elements
//   134217728] [--direction forward]
// Bytes are the fewest that an op can move: each tensor once. The second cache is flushed before
// each call; the median of a few; the second kernel of the weights' gradients counts.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "norma/core/cuda/check.h"
#include "norma/core/random.h"
#include "norma/core/tensor.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/norm/kernels.h"

namespace norma {
namespace {

using detail::check;

struct Kind {
  const char* name;
  NormKind kind;
  GateOrder gate;
  bool bias, residual, wide;  // wide: the residual in float32
};
constexpr Kind kKinds[] = {
    {"rms", NormKind::rms, GateOrder::no_gate, false, false, false},
    {"layer", NormKind::layer, GateOrder::no_gate, true, false, false},
    {"norm_then_gate", NormKind::rms, GateOrder::norm_then_gate, false, false, false},
    {"gate_then_norm", NormKind::rms, GateOrder::gate_then_norm, false, false, false},
    {"layer_gated", NormKind::layer, GateOrder::norm_then_gate, true, false, false},
    {"add_rms", NormKind::rms, GateOrder::no_gate, false, true, false},
    {"add_rms_wide", NormKind::rms, GateOrder::no_gate, false, true, true},
};

class Bench {
 public:
  explicit Bench(int64_t elements) : on_(cuda_stream(cuda)), elements_(elements) {
    const int64_t bytes = elements * 4;
    for (void*& b : buffers_) check(cudaMalloc(&b, static_cast<size_t>(bytes)), "allocate");
    check(cudaMalloc(&flush_, kFlush), "allocate");
    check(cudaMalloc(&stats_, static_cast<size_t>(elements)), "allocate");
    check(cudaEventCreate(&begin_), "make an event");
    check(cudaEventCreate(&end_), "make an event");
    source_ = randn({1 << 22});
  }
  /// Of a copy of as many bytes as a tensor of that dtype has.
  double copy_bandwidth(DType dtype) {
    const auto n = static_cast<size_t>(elements_ * size_of(dtype));
    const double us = time([&] {
      check(cudaMemcpyAsync(buffers_[1], buffers_[0], n, cudaMemcpyDeviceToDevice,
                            detail::stream_of(on_)),
            "copy");
    });
    return 2 * static_cast<double>(n) / us * 1e-3;
  }
  /// What a kernel without arithmetic to speak of reaches that reads two and writes one.
  double add_bandwidth(DType dtype) {
    const Tensor a = empty({elements_}, dtype, cuda), b = zeros_like(a);
    a.copy_(b);
    Tensor sum;
    const double us = time([&] { sum = {}, sum = a + b; });
    return 3 * static_cast<double>(elements_ * size_of(dtype)) / us * 1e-3;
  }
  void run(const Kind& kind, DType dtype, int64_t cols, int64_t rows, double copy,
           std::string_view direction) {
    const DType h_dtype = kind.wide ? float32 : dtype;
    fill(0, dtype), fill(1, dtype), fill(2, h_dtype), fill(3, dtype), fill(4, h_dtype);
    const auto in = [&](int b, DType t) {
      ConstRows r;
      r.data = buffers_[b], r.rows = rows, r.cols = r.row_stride = cols, r.dtype = t;
      return r;
    };
    const auto out = [&](int b, DType t) {
      Rows r;
      r.data = buffers_[b], r.rows = rows, r.cols = r.row_stride = cols, r.dtype = t;
      return r;
    };
    const auto stat = [&](int i) {
      Vec v;
      v.data = static_cast<float*>(stats_) + i * rows, v.n = rows;
      return v;
    };
    const auto constant = [](const Vec& v) {
      ConstVec c;
      c.data = v.data, c.n = v.n, c.dtype = v.dtype;
      return c;
    };
    const Tensor w = randn({cols}).to(dtype).to(cuda), dw = empty({cols}, dtype, cuda),
                 db = empty({cols}, dtype, cuda);
    const bool gated = kind.gate != GateOrder::no_gate, layer = kind.kind == NormKind::layer;
    NormForwardArgs f;
    f.options.kind = kind.kind, f.options.gate = kind.gate;
    f.x = in(0, dtype);
    if (gated) f.z = in(1, dtype);
    if (kind.residual) f.residual = in(2, h_dtype), f.h = out(5, h_dtype);
    f.w = w;
    if (kind.bias) f.b = w;
    f.y = out(6, dtype);
    if (layer) f.mean = stat(0), f.mean_rest = stat(1);
    f.rstd = stat(2);
    const double forward = time([&] { norma::run(on_, f); });
    NormBackwardArgs b;
    b.options = f.options, b.x_dtype = dtype;
    b.dy = in(3, dtype);
    b.h = kind.residual ? in(2, h_dtype) : in(0, dtype);
    if (kind.residual) b.dh = in(4, h_dtype);
    if (gated) b.z = in(1, dtype), b.dz = out(5, dtype);
    b.w = w;
    if (kind.bias) b.b = w;
    if (layer) b.mean = constant(f.mean), b.mean_rest = constant(f.mean_rest);
    b.rstd = constant(f.rstd);
    b.dx = out(6, dtype);
    if (kind.wide) b.dresidual = out(5, h_dtype);
    b.dw = dw;
    if (kind.bias) b.db = db;
    const double backward = direction == "forward" ? 0 : time([&] { norma::run(on_, b); });
    const double n = static_cast<double>(rows * cols), t = static_cast<double>(size_of(dtype)),
                 h = static_cast<double>(size_of(h_dtype));
    const double forward_bytes = n * (2 * t + gated * t + kind.residual * 2 * h);
    const double backward_bytes =
        n * (2 * t + h + gated * 2 * t + kind.residual * h + kind.wide * h);
    const auto say = [&](const char* direction, double us, double bytes) {
      std::printf("%-14s %-8s %-8s %8lldx%-8lld %9.1f us %6.0f GB/s %6.1f %% of copy\n", kind.name,
                  direction, std::string(to_string(dtype)).c_str(), static_cast<long long>(rows),
                  static_cast<long long>(cols), us, bytes / us * 1e-3, bytes / us * 0.1 / copy);
    };
    if (direction != "backward") say("forward", forward, forward_bytes);
    if (direction != "forward") say("backward", backward, backward_bytes);
    std::fflush(stdout);
  }

 private:
  static constexpr size_t kFlush = size_t{256} << 20;

  /// Microseconds, the median of seven.
  template <class F>
  double time(const F& f) {
    std::vector<float> ms;
    for (int i = 0; i < 9; ++i) {
      check(cudaMemsetAsync(flush_, i, kFlush, detail::stream_of(on_)), "flush");
      check(cudaEventRecord(begin_, detail::stream_of(on_)), "record");
      f();
      check(cudaEventRecord(end_, detail::stream_of(on_)), "record");
      check(cudaEventSynchronize(end_), "wait");
      float t = 0;
      check(cudaEventElapsedTime(&t, begin_, end_), "measure");
      if (i >= 2) ms.push_back(t);
    }
    std::nth_element(ms.begin(), ms.begin() + 3, ms.end());
    return static_cast<double>(ms[3]) * 1e3;
  }
  void fill(int b, DType dtype) {
    if (filled_[b] == size_of(dtype)) return;
    filled_[b] = size_of(dtype);
    const Tensor s = source_.to(dtype);
    const auto bytes = static_cast<size_t>(s.numel() * size_of(dtype));
    const size_t all = static_cast<size_t>(elements_ * size_of(dtype));
    for (size_t at = 0; at < all; at += bytes)
      check(cudaMemcpy(static_cast<char*>(buffers_[b]) + at, s.data(), std::min(bytes, all - at),
                       cudaMemcpyHostToDevice),
            "fill");
  }

  Cuda on_;
  int64_t elements_;
  void* buffers_[7] = {};
  int64_t filled_[7] = {};
  void *flush_ = nullptr, *stats_ = nullptr;
  cudaEvent_t begin_{}, end_{};
  Tensor source_;
};

int benchmark(int argc, char** argv) {
  std::string kind = "all", dtype = "all", cols = "256,1024,4096,8192,16384,65536",
              direction = "both";
  int64_t elements = int64_t{1} << 27, rows = 0;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view flag = argv[i];
    if (flag == "--kind") kind = argv[i + 1];
    if (flag == "--dtype") dtype = argv[i + 1];
    if (flag == "--cols") cols = argv[i + 1];
    if (flag == "--direction") direction = argv[i + 1];
    if (flag == "--elements") elements = std::atoll(argv[i + 1]);
    if (flag == "--rows") rows = std::atoll(argv[i + 1]);
  }
  Bench bench(elements);
  for (DType t : {bfloat16, float32, float16}) {
    if (dtype == "all" ? t == float16 : dtype != to_string(t)) continue;
    const double copy = bench.copy_bandwidth(t);
    std::printf("%s: copy of %s %.0f GB/s\n", detail::properties().name,
                std::string(to_string(t)).c_str(), copy);
    std::printf("add of two %s tensors: %.1f %% of copy\n", std::string(to_string(t)).c_str(),
                100 * bench.add_bandwidth(t) / copy);
    for (const Kind& k : kKinds) {
      if (kind != "all" && kind != k.name) continue;
      for (const char* p = cols.c_str(); *p;) {
        char* end = nullptr;
        const int64_t d = std::strtoll(p, &end, 10);
        bench.run(k, t, d, rows > 0 ? rows : elements / d, copy, direction);
        p = *end ? end + 1 : end;
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace norma

int main(int argc, char** argv) { return norma::benchmark(argc, argv); }
