#include "norma/ops/norm/explain.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <string_view>
#include <utility>

#include "norma/core/autograd.h"
#include "norma/core/cuda/launches.h"
#include "norma/core/cuda/timer.h"
#include "norma/core/device.h"
#include "norma/core/format.h"
#include "norma/ops/norm/arguments.h"
#include "norma/ops/norm/choice.h"
#include "norma/ops/norm/products.h"

namespace norma {
namespace {

using Maybe = std::optional<Tensor>;

struct Choice {
  const char *kernel = "one that does not say", *why = "";
};
constinit thread_local Choice* listening = nullptr;

/// The least time of a call, among those that fit into some tens of milliseconds.
template <class F>
double least_on_processor(const F& call) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::milliseconds kLong(30);
  double least = std::numeric_limits<double>::infinity();
  const auto begin = Clock::now();
  for (int i = 0; i < 3 || (i < 1000 && Clock::now() < begin + kLong); ++i) {
    const auto start = Clock::now();
    call();
    least = std::min(least, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return least;
}
/// On the device's own clock: the host is held to be ahead, so that its launches are not timed.
template <class F>
double least_on_gpu(Device device, const F& call) {
  constexpr int kCalls = 20;
  detail::CudaTimer timer(device);
  timer.delay(2e-3);
  timer.mark();
  for (int i = 0; i < kCalls; ++i) call(), timer.mark();
  const std::vector<double> times = timer.take();
  return *std::min_element(times.begin(), times.end());
}
template <class F>
double least_seconds(Device device, const F& call) {
  call();  // what is made once, is made now
  synchronize(device);
  if constexpr (kBuiltWithCuda)
    if (device.is_cuda()) return least_on_gpu(device, call);
  return least_on_processor(call);
}

double seconds_of_copy(int64_t bytes, Device device) {
  const int64_t n = std::max<int64_t>(1, bytes / 8);  // as many read as written, four bytes each
  const Tensor from = zeros({n}, float32, device), to = zeros({n}, float32, device);
  return least_seconds(device, [&] { to.copy_(from); });
}

int64_t bytes_of(const Maybe& t) { return t ? t->numel() * size_of(t->dtype()) : 0; }
template <class... T>
int64_t bytes_of(const Maybe& first, const T&... rest) {
  return bytes_of(first) + (int64_t{0} + ... + bytes_of(Maybe(rest)));
}
Maybe present(const Tensor& t) { return t.defined() ? Maybe(t) : none; }

/// "norm_forward_any_kernel<float, false>" of the library's own kernels. A processor knows none.
[[maybe_unused]] std::string without_namespaces(std::string name) {
  for (std::string_view space : {"norma::norm_cuda::", "norma::", "(anonymous namespace)::"})
    for (size_t at; (at = name.find(space)) != std::string::npos;) name.erase(at, space.size());
  return name;
}
/// The kernels that a call launches on a GPU, in their order; empty on the processor.
template <class F>
std::string kernels_of(Device device, const F& call) {
  std::string kernels;
  if constexpr (kBuiltWithCuda)
    if (device.is_cuda()) {
      const detail::LaunchListener listener;
      call();
      for (const std::string& kernel : listener.kernels())
        kernels += (kernels.empty() ? "" : ", then ") + without_namespaces(kernel);
      return kernels;
    }
  call();
  return kernels;
}

template <class F>
void measure(NormCost& cost, Device device, const F& call) {
  Choice choice;
  Choice* const outer = std::exchange(listening, &choice);
  cost.kernel = kernels_of(device, call);
  listening = outer;
  if (cost.kernel.empty()) cost.kernel = choice.kernel;
  cost.why = choice.why;
  cost.seconds = least_seconds(device, call);
  cost.copy_seconds = seconds_of_copy(cost.read + cost.written, device);
}

std::string text_of(const char* direction, const NormCost& c) {
  const double bytes = static_cast<double>(c.read + c.written);
  return norma::format(
      "  {}\n    kernel  {}\n    why     {}\n    bytes   {} read, {} written\n    time    {:.1f} "
      "us, {:.1f} GB/s, {:.0f} % of a copy of as many bytes\n",
      direction, c.kernel, c.why, c.read, c.written, c.seconds * 1e6, bytes / c.seconds / 1e9,
      c.share_of_copy() * 100);
}

}  // namespace

void detail::chose(const char* kernel, const char* why) {
  if (listening) *listening = {kernel, why};
}

NormExplanation explain(const Tensor& x, const NormInputs& in, const NormOptions& o) {
  const NoGrad plain;
  NormExplanation e;
  e.what = norma::format("norm of {} {} on {}", x.shape(), to_string(x.dtype()), x.device());
  const NormResult r = fused_norm(x, in, o);
  const Maybe mean = present(r.mean.value), rest = present(r.mean_rest.value);
  e.forward.read = bytes_of(x, in.w, in.b, in.z, in.residual, in.row_scale, in.w2, in.b2);
  e.forward.written = bytes_of(r.y, r.y2, r.h, mean, rest, r.rstd.value);
  measure(e.forward, x.device(), [&] { fused_norm(x, in, o); });

  const Tensor dy = ones_like(r.y);
  NormGrads g = detail::gradients_of_y(x, r, dy, in, o);
  e.backward.read = bytes_of(dy, r.h ? r.h : Maybe(x), in.z, in.w, mean, rest, r.rstd.value);
  e.backward.written = bytes_of(g.dx, g.dresidual, g.dw, g.db, g.dz, g.drow_scale);
  g = {};
  measure(e.backward, x.device(), [&] { detail::gradients_of_y(x, r, dy, in, o); });
  return e;
}

std::string to_string(const NormExplanation& e) {
  return e.what + "\n" + text_of("forward", e.forward) + text_of("backward", e.backward);
}

}  // namespace norma
