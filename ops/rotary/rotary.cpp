#include "norma/ops/rotary/rotary.h"

#include <cmath>
#include <mutex>

#include "norma/core/dispatch.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/rotary/kernels.h"
#include "norma/ops/view/view.h"

namespace norma {
namespace {

struct Angles {
  Tensor cos, sin;
};

/// cos and sin of every angle, (T, D/2). Computed once for a size: a training step asks anew for
/// each layer.
Angles angles(int64_t length, int64_t dim, DType dtype, Device device, const RotaryOptions& o) {
  struct Key {
    int64_t length, dim, offset;
    double base;
    bool inverse;
    DType dtype;
    Device device;
    bool operator==(const Key&) const = default;
  };
  static std::mutex mutex;
  static auto* last = new std::pair<Key, Angles>();
  const Key key{length, dim, o.offset, o.base, o.inverse, dtype, device};
  const std::lock_guard lock(mutex);
  if (last->second.cos.defined() && last->first == key) return last->second;
  std::vector<double> cosines, sines;
  for (int64_t t = 0; t < length; ++t)
    for (int64_t i = 0; i < dim / 2; ++i) {
      const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(dim);
      const double angle = static_cast<double>(o.offset + t) * std::pow(o.base, exponent);
      cosines.push_back(std::cos(angle));
      sines.push_back(o.inverse ? -std::sin(angle) : std::sin(angle));
    }
  const Shape shape{length, dim / 2};
  const NoGrad tables;
  *last = {key,
           {from_span<double>(cosines, shape).to(dtype).to(device),
            from_span<double>(sines, shape).to(dtype).to(device)}};
  return last->second;
}

}  // namespace

TensorSpec Rotary::check(const Tensor& x, const Options&) {
  if (!is_floating(x.dtype()))
    throw DTypeError("{}: x must be floating, but is {}", name, to_string(x.dtype()));
  if (x.dim() < 2 || x.shape().back() % 2 != 0)
    throw ShapeError("{}: x must be (…, T, D) with an even D, but is {}", name, x.shape());
  return x.spec();
}
Tensor Rotary::define(const Tensor& x, const Options& o) {
  const int64_t dim = x.size(-1);
  const Tensor u = x.to(stats_dtype(x.dtype()));
  const auto [cos, sin] = angles(x.size(-2), dim, u.dtype(), x.device(), o);
  const bool halves = o.pairs == RotaryPairs::halves;
  const Tensor a = halves ? u.slice(-1, 0, dim / 2) : u.slice(-1, 0, dim, 2);
  const Tensor b = halves ? u.slice(-1, dim / 2, dim) : u.slice(-1, 1, dim, 2);
  const Tensor p = a * cos - b * sin, q = a * sin + b * cos;
  const Tensor y = halves ? concat({p, q}, -1) : stack({p, q}, -1).reshape(x.shape());
  return y.to(x.dtype());
}
Tensor Rotary::forward(Context& ctx, const Tensor& x, const Options& o) {
  Tensor y = empty(ctx.output());
  const auto table = angles(x.size(-2), x.size(-1), stats_dtype(x.dtype()), x.device(), o);
  dispatch(x.device(),
           RotaryArgs{.x = x, .cos = table.cos, .sin = table.sin, .pairs = o.pairs, .y = y});
  return y;
}
Tensor Rotary::backward(Context& ctx, const Tensor& dy) {
  const Options& forward_options = ctx.options();
  Options o = forward_options;
  o.inverse = !o.inverse;
  return apply<Rotary>(dy, o);
}

Tensor rotary(const Tensor& x, const RotaryOptions& options) { return apply<Rotary>(x, options); }

}  // namespace norma
