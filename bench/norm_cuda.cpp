// The norm family on a GPU, kernels alone, a line a cell; bench/norms.py sets them beside peers':
//   build/cuda/bench/norm_cuda [--kind rms,layer] [--dtype bfloat16] [--shapes grid|odd|toy|few]
//   [--cols 256,1024] [--rows 64] [--elements 134217728] [--direction backward] [--most-small 0]
//   [--most-few 0] [--weights float32] [--group 128]
// Bytes are the fewest that an op can move: each tensor once. The second cache is flushed before
// each call; the median of seven; the second kernel of the weights' gradients counts. "stream" is a
// kernel of the same reads and writes without arithmetic. The odd, the toy and the few rows' shapes
// are timed without a flush, as a call's share of a CUDA graph of 100, the median of three.
// --most-small and --most-few: the largest problems, in elements, whose backward runs as one launch
// of one kernel or the other; --option: precise or portable weight gradients; --weights: float32,
// zero-centred or none in place of x's dtype; --group: of so many columns, which share their
// weights.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "norm_cuda/stream.h"
#include "norma/core/cuda/check.h"
#include "norma/core/cuda/runtime.h"
#include "norma/core/error.h"
#include "norma/core/random.h"
#include "norma/core/tensor.h"
#include "norma/ops/norm/dyt_kernels.h"
#include "norma/ops/norm/kernels.h"
#include "norma/ops/norm/plans.h"

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
/// What stands in a norm's place, and the second derivative of a norm, whose "backward" it is.
struct OtherKind {
  const char* name;
  enum { squash, second } what;
  SquashFunction function;
  NormKind kind;
};
constexpr OtherKind kOtherKinds[] = {
    {"dyt", OtherKind::squash, SquashFunction::tanh, NormKind::rms},
    {"derf", OtherKind::squash, SquashFunction::erf, NormKind::rms},
    {"rms_second", OtherKind::second, SquashFunction::tanh, NormKind::rms},
    {"layer_second", OtherKind::second, SquashFunction::tanh, NormKind::layer},
};
struct Size {
  int64_t rows, cols;
};
constexpr int64_t kElements = int64_t{1} << 27, kManyRows = int64_t{1} << 22;
constexpr Size kOddSizes[] = {{kElements / 257, 257},
                              {kElements / 1000, 1000},
                              {kElements / 4097, 4097},
                              {kElements / 65537, 65537},
                              {1, 4096},
                              {16, 4096},
                              {132, 4096},
                              {4, 131072},
                              {kManyRows, 32},
                              {kManyRows, 64},
                              {kManyRows, 128}};
constexpr Size kToySizes[] = {{256, 64},   {768, 64},   {768, 128},  {2048, 128}, {4096, 128},
                              {768, 256},  {768, 384},  {2048, 256}, {256, 512},  {1024, 512},
                              {12288, 32}, {49152, 16}, {16, 512},   {64, 1024}};
constexpr Size kFewSizes[] = {{1, 1024},  {16, 1024},  {132, 1024}, {1, 4096},   {4, 4096},
                              {16, 4096}, {64, 4096},  {132, 4096}, {256, 4096}, {1, 16384},
                              {4, 16384}, {32, 16384}, {1, 65536},  {4, 131072}};
constexpr const char* kGrid =
    "256,512,768,1024,1536,2048,3072,4096,5120,8192,12288,16384,32768,65536,131072";
constexpr int kSkipped = 77;  // what the tests exit with where there is no GPU

cudaStream_t own_stream() {
  cudaStream_t stream{};
  check(cudaStreamCreate(&stream), "make a stream");
  return stream;
}

class Bench {
 public:
  Bench(int64_t elements, bool in_graph, std::string_view option, std::string_view weights,
        int64_t group)
      : stream_(own_stream()),
        scope_(cuda, stream_),
        elements_(elements),
        in_graph_(in_graph),
        option_(option),
        weights_(weights),
        group_(group) {
    const int64_t bytes = elements * 4;
    for (void*& b : buffers_) check(cudaMalloc(&b, static_cast<size_t>(bytes)), "allocate");
    check(cudaMalloc(&flush_, kFlush), "allocate");
    check(cudaMalloc(&stats_, static_cast<size_t>(elements)), "allocate");
    check(cudaEventCreate(&begin_), "make an event");
    check(cudaEventCreate(&end_), "make an event");
    source_ = randn({1 << 22});
  }
  double copy_bandwidth() {
    const auto n = static_cast<size_t>(elements_ * 4);
    const double us = after_flush([&] {
      check(cudaMemcpyAsync(buffers_[1], buffers_[0], n, cudaMemcpyDeviceToDevice, stream_),
            "copy");
    });
    return 2 * static_cast<double>(n) / us * 1e-3;
  }
  void run(const Kind& kind, DType dtype, const Size& size, std::string_view direction,
           double copy) {
    name_ = kind.name, dtype_ = dtype, size_ = size, copy_ = copy;
    const DType h_dtype = kind.wide ? float32 : dtype;
    fill(0, dtype), fill(1, dtype), fill(2, h_dtype), fill(3, dtype), fill(4, h_dtype);
    const int64_t weight = group_ > 0 ? group_ : size.cols;
    const DType w_dtype = weights_ == "float32" ? float32 : dtype;
    const Tensor w = randn({weight}).to(w_dtype).to(cuda), dw = empty({weight}, w_dtype, cuda),
                 db = empty({weight}, w_dtype, cuda);
    const bool weighted = weights_ != "none", biased = kind.bias && weighted;
    const bool gated = kind.gate != GateOrder::no_gate, layer = kind.kind == NormKind::layer;
    NormForwardArgs f;
    f.options.kind = kind.kind, f.options.gate = kind.gate, f.options.group = group_;
    f.options.zero_centered = weights_ == "zero-centred";
    f.x = in(0, dtype);
    if (gated) f.z = in(1, dtype);
    if (kind.residual) f.residual = in(2, h_dtype), f.h = out(5, h_dtype);
    if (weighted) f.w = w;
    if (biased) f.b = w;
    f.y = out(6, dtype);
    if (layer) f.mean = stat(0), f.mean_rest = stat(1);
    f.rstd = stat(2);
    const Cuda on = cuda_stream(cuda);
    if (direction != "backward")
      time("forward", [&] { norma::run(on, f); }, {f.x, f.z, f.residual}, {f.y, f.h});
    else
      norma::run(on, f);  // its statistics are read
    NormBackwardArgs b;
    b.options = f.options, b.x_dtype = dtype;
    b.options.precise = option_ == "precise", b.options.portable = option_ == "portable";
    b.dy = in(3, dtype);
    b.h = kind.residual ? in(2, h_dtype) : in(0, dtype);
    if (kind.residual) b.dh = in(4, h_dtype);
    if (gated) b.z = in(1, dtype), b.dz = out(5, dtype);
    if (weighted) b.w = w, b.dw = dw;
    if (biased) b.b = w, b.db = db;
    if (layer) b.mean = constant(f.mean), b.mean_rest = constant(f.mean_rest);
    b.rstd = constant(f.rstd);
    b.dx = out(6, dtype);
    if (kind.wide) b.dresidual = out(5, h_dtype);
    if (direction != "forward")
      time("backward", [&] { norma::run(on, b); }, {b.dy, b.h, b.z, b.dh},
           {b.dx, b.dz, b.dresidual});
  }
  void run(const OtherKind& kind, DType dtype, const Size& size, std::string_view direction,
           double copy) {
    name_ = kind.name, dtype_ = dtype, size_ = size, copy_ = copy;
    fill(0, dtype), fill(1, dtype), fill(2, dtype);
    if (kind.what == OtherKind::squash)
      run_squash(kind.function, direction);
    else if (direction != "forward")
      run_second(kind.kind);
  }

 private:
  ConstRows in(int b, DType t) const {
    ConstRows r;
    r.data = buffers_[b], r.rows = size_.rows, r.cols = r.row_stride = size_.cols, r.dtype = t;
    return r;
  }
  Rows out(int b, DType t) const {
    Rows r;
    r.data = buffers_[b], r.rows = size_.rows, r.cols = r.row_stride = size_.cols, r.dtype = t;
    return r;
  }
  Vec stat(int i) const {
    Vec v;
    v.n = size_.rows * (group_ > 0 ? size_.cols / group_ : 1);
    v.data = static_cast<float*>(stats_) + i * v.n;
    return v;
  }
  static ConstVec constant(const Vec& v) {
    ConstVec c;
    c.data = v.data, c.n = v.n, c.dtype = v.dtype;
    return c;
  }
  void run_squash(SquashFunction function, std::string_view direction) {
    const Tensor w = randn({size_.cols}).to(dtype_).to(cuda), dw = empty_like(w),
                 db = empty_like(w);
    const Tensor alpha = full({1}, 0.5).to(cuda), dalpha = empty_like(alpha),
                 dshift = empty_like(alpha);
    SquashForwardArgs f{};
    SquashBackwardArgs b{};
    f.function = b.function = function;
    f.x = b.x = in(0, dtype_), b.dy = in(1, dtype_), f.alpha = b.alpha = alpha;
    f.w = f.b = b.w = w, f.y = out(6, dtype_);
    b.dx = out(6, dtype_), b.dalpha = dalpha, b.dw = dw, b.db = db;
    if (function == SquashFunction::erf) f.shift = b.shift = alpha, b.dshift = dshift;
    const Cuda on = cuda_stream(cuda);
    if (direction != "backward") time("forward", [&] { norma::run(on, f); }, {f.x}, {f.y});
    if (direction != "forward") time("backward", [&] { norma::run(on, b); }, {b.x, b.dy}, {b.dx});
  }
  void run_second(NormKind kind) {
    const Tensor w = randn({size_.cols}).to(dtype_).to(cuda), of_w = empty_like(w);
    const Cuda on = cuda_stream(cuda);
    NormForwardArgs f;
    f.options.kind = kind, f.x = in(0, dtype_), f.w = w, f.y = out(6, dtype_), f.rstd = stat(2);
    if (kind == NormKind::layer) f.mean = stat(0), f.mean_rest = stat(1);
    norma::run(on, f);  // its statistics are read
    NormSecondArgs k;
    k.options = f.options, k.dy = in(1, dtype_), k.h = in(0, dtype_), k.v = in(2, dtype_);
    k.w = k.vw = w, k.rstd = constant(f.rstd);
    if (f.mean) k.mean = constant(f.mean), k.mean_rest = constant(f.mean_rest);
    k.of_dy = out(5, dtype_), k.of_h = out(6, dtype_), k.of_w = of_w;
    time("backward", [&] { norma::run(on, k); }, {k.dy, k.h, k.v}, {k.of_dy, k.of_h});
  }

  static constexpr size_t kFlush = size_t{256} << 20;

  /// Prints a norm's line, and that of a kernel with the same reads and writes.
  template <class F>
  void time(const char* direction, const F& f, const std::vector<ConstRows>& in,
            const std::vector<Rows>& out) {
    Streams s;
    int64_t bytes = 0;
    const auto add = [&](const auto& t, Streams::One* all, int& n) {
      if (!t) return;
      all[n++] = {const_cast<void*>(static_cast<const void*>(t.data)), int(size_of(t.dtype))};
      bytes += t.rows * t.cols * size_of(t.dtype);
    };
    for (const ConstRows& t : in) add(t, s.in, s.ins);
    for (const Rows& t : out) add(t, s.out, s.outs);
    s.n = size_.rows * size_.cols / 8 * 8;
    say(direction, "norma", in_graph_ ? in_a_graph(f) : after_flush(f), bytes);
    if (in_graph_) return;
    say(direction, "stream", after_flush([&] { stream_through(cuda_stream(cuda), s); }), bytes);
  }
  void say(const char* direction, const char* who, double us, int64_t bytes) const {
    const double speed = static_cast<double>(bytes) / us * 1e-3;
    std::printf("%-14s %-8s %-8s %8lldx%-8lld %10.2f us %6.0f GB/s %6.1f %% of copy  %s\n", name_,
                direction, std::string(to_string(dtype_)).c_str(),
                static_cast<long long>(size_.rows), static_cast<long long>(size_.cols), us, speed,
                100 * speed / copy_, who);
    std::fflush(stdout);
  }

  /// Microseconds of what is recorded between the two events, the median after a turn to warm up.
  template <class Before, class F>
  double median(int turns, const Before& before, const F& f) {
    std::vector<float> ms;
    for (int i = 0; i <= turns; ++i) {
      before();
      check(cudaEventRecord(begin_, stream_), "record");
      f();
      check(cudaEventRecord(end_, stream_), "record");
      check(cudaEventSynchronize(end_), "wait");
      float t = 0;
      check(cudaEventElapsedTime(&t, begin_, end_), "measure");
      if (i > 0) ms.push_back(t);
    }
    std::nth_element(ms.begin(), ms.begin() + turns / 2, ms.end());
    return static_cast<double>(ms[static_cast<size_t>(turns / 2)]) * 1e3;
  }
  template <class F>
  double after_flush(const F& f) {
    return median(
        7, [&] { check(cudaMemsetAsync(flush_, 1, kFlush, stream_), "flush"); }, f);
  }
  template <class F>
  double in_a_graph(const F& f) {
    constexpr int kCalls = 100;
    f();  // what is made once, is made now
    check(cudaStreamSynchronize(stream_), "wait");
    cudaGraph_t graph{};
    cudaGraphExec_t executable{};
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "begin a graph");
    for (int i = 0; i < kCalls; ++i) f();
    check(cudaStreamEndCapture(stream_, &graph), "end a graph");
    check(cudaGraphInstantiate(&executable, graph, 0), "instantiate a graph");
    const double us = median(
        3, [] {}, [&] { check(cudaGraphLaunch(executable, stream_), "launch a graph"); });
    check(cudaGraphExecDestroy(executable), "destroy a graph");
    check(cudaGraphDestroy(graph), "destroy a graph");
    return us / kCalls;
  }
  void fill(int b, DType dtype) {
    if (filled_[b] == size_of(dtype)) return;
    filled_[b] = size_of(dtype);
    const Tensor s = source_.to(dtype);
    const auto bytes = static_cast<size_t>(s.numel() * size_of(dtype));
    const auto all = static_cast<size_t>(elements_ * size_of(dtype));
    auto* to = static_cast<char*>(buffers_[b]);
    check(cudaMemcpy(to, s.data(), std::min(bytes, all), cudaMemcpyHostToDevice), "fill");
    for (size_t at = bytes; at < all; at *= 2)
      check(cudaMemcpy(to + at, to, std::min(at, all - at), cudaMemcpyDeviceToDevice), "fill");
  }

  cudaStream_t stream_;
  detail::StreamScope scope_;
  int64_t elements_;
  bool in_graph_;
  std::string option_, weights_;
  int64_t group_;
  void* buffers_[7] = {};
  int64_t filled_[7] = {};
  void *flush_ = nullptr, *stats_ = nullptr;
  cudaEvent_t begin_{}, end_{};
  Tensor source_;
  const char* name_ = "";
  DType dtype_ = float32;
  Size size_{};
  double copy_ = 1;
};

struct Flags {
  std::string kind = "all", dtype = "all", cols = kGrid, shapes = "grid", direction = "both",
              option, weights = "like x";
  int64_t elements = kElements, rows = 0, group = 0;
};

std::vector<Size> sizes_of(const Flags& flags) {
  std::vector<Size> sizes;
  if (flags.shapes == "odd") return {std::begin(kOddSizes), std::end(kOddSizes)};
  if (flags.shapes == "toy") return {std::begin(kToySizes), std::end(kToySizes)};
  if (flags.shapes == "few") return {std::begin(kFewSizes), std::end(kFewSizes)};
  if (flags.shapes != "grid")
    throw ValueError("norm_cuda: --shapes must be grid, odd, toy or few, but is {}", flags.shapes);
  for (const char* p = flags.cols.c_str(); *p;) {
    char* end = nullptr;
    const int64_t d = std::strtoll(p, &end, 10);
    if (end == p || d < 1)
      throw ValueError("norm_cuda: --cols must be numbers with commas between, but is {}",
                       flags.cols);
    sizes.push_back({flags.rows > 0 ? flags.rows : std::max<int64_t>(1, flags.elements / d), d});
    p = *end ? end + 1 : end;
  }
  return sizes;
}
bool names(std::string_view list, std::string_view name) {
  if (list == "all") return true;
  for (size_t at = 0; at <= list.size();) {
    const size_t end = std::min(list.find(',', at), list.size());
    if (list.substr(at, end - at) == name) return true;
    at = end + 1;
  }
  return false;
}

int benchmark(int argc, char** argv) {
  Flags flags;
  for (int i = 1; i < argc; i += 2) {
    const std::string_view flag = argv[i];
    if (i + 1 == argc) throw ValueError("norm_cuda: {} needs a value", flag);
    const char* value = argv[i + 1];
    if (flag == "--kind")
      flags.kind = value;
    else if (flag == "--dtype")
      flags.dtype = value;
    else if (flag == "--cols")
      flags.cols = value;
    else if (flag == "--shapes")
      flags.shapes = value;
    else if (flag == "--direction")
      flags.direction = value;
    else if (flag == "--elements")
      flags.elements = std::atoll(value);
    else if (flag == "--rows")
      flags.rows = std::atoll(value);
    else if (flag == "--option")
      flags.option = value;
    else if (flag == "--weights")
      flags.weights = value;
    else if (flag == "--group")
      flags.group = std::atoll(value);
    else if (flag == "--most-small")
      norm_cuda::most_small_elements = std::atoll(value);
    else if (flag == "--most-few")
      norm_cuda::most_few_elements = std::atoll(value);
    else
      throw ValueError("norm_cuda: no flag {}", flag);
  }
  if (!names("like x,float32,zero-centred,none", flags.weights))
    throw ValueError("norm_cuda: --weights must be float32, zero-centred or none, but is {}",
                     flags.weights);
  const std::vector<Size> sizes = sizes_of(flags);
  if (detail::cuda_device_count() == 0) {
    std::fprintf(stderr, "norm_cuda: nothing to time: %s\n", detail::cuda_devices_found().c_str());
    return kSkipped;
  }
  int64_t elements = flags.elements;
  for (const Size& s : sizes) elements = std::max(elements, s.rows * s.cols);
  Bench bench(elements, flags.shapes != "grid", flags.option, flags.weights, flags.group);
  const double copy = bench.copy_bandwidth();
  std::printf("%s: copy %.0f GB/s\n", detail::properties().name, copy);
  int cells = 0;
  for (DType t : {bfloat16, float32, float16}) {
    if (flags.dtype == "all" ? t == float16 : !names(flags.dtype, to_string(t))) continue;
    for (const Kind& k : kKinds) {
      if (!names(flags.kind, k.name)) continue;
      for (const Size& s : sizes) bench.run(k, t, s, flags.direction, copy), ++cells;
    }
    for (const OtherKind& k : kOtherKinds)
      if (names(flags.kind, k.name))
        for (const Size& s : sizes) bench.run(k, t, s, flags.direction, copy), ++cells;
  }
  if (cells == 0) throw ValueError("norm_cuda: no kind {} or dtype {}", flags.kind, flags.dtype);
  return 0;
}

}  // namespace
}  // namespace norma

int main(int argc, char** argv) {
  try {
    return norma::benchmark(argc, argv);
  } catch (const norma::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
