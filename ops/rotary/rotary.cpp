#include "norma/ops/rotary/rotary.h"

#include <bit>
#include <cmath>
#include <mutex>
#include <vector>

#include "norma/core/captured_call.h"
#include "norma/core/dispatch.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/rotary/kernels.h"
#include "norma/ops/view/view.h"

namespace norma {
namespace {

struct Angles {
  Tensor cos, sin;
};

/// cos and sin of `rows` positions from `first` on, (rows, D/2).
Angles make_angles(int64_t first, int64_t rows, int64_t dim, DType dtype, Device device,
                   const RotaryOptions& o) {
  std::vector<double> cosines, sines;
  for (int64_t t = first; t < first + rows; ++t)
    for (int64_t i = 0; i < dim / 2; ++i) {
      const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(dim);
      const double angle = static_cast<double>(t) * std::pow(o.base, exponent);
      cosines.push_back(std::cos(angle));
      sines.push_back(o.inverse ? -std::sin(angle) : std::sin(angle));
    }
  const Shape shape{rows, dim / 2};
  const NoGrad tables;
  return {from_span<double>(cosines, shape).to(dtype).to(device),
          from_span<double>(sines, shape).to(dtype).to(device)};
}

Tensor rows_of(const Tensor& table, int64_t first, int64_t rows) {
  const int64_t width = table.size(1);
  return detail::raw_view(table, {rows, width}, table.strides(), first * width);
}

constexpr int64_t kMostRows = 1 << 17;  // 32 MiB in float32 for heads of 128

/// The angles that x needs, out of tables for all positions up to a power of two. Tables stay for
/// good, a longer one beside a shorter one, since captured graphs read them: twice the longest.
Angles angles(int64_t length, int64_t dim, DType dtype, Device device, const RotaryOptions& o) {
  struct Table {
    int64_t dim;
    double base;
    bool inverse;
    DType dtype;
    Device device;
    int64_t rows;
    Angles angles;
  };
  static std::mutex mutex;
  static auto* tables = new std::vector<Table>();
  const int64_t wanted = o.offset + length;
  if (o.offset < 0 || wanted > kMostRows)
    return make_angles(o.offset, length, dim, dtype, device, o);
  const std::lock_guard lock(mutex);
  for (const Table& t : *tables)
    if (t.rows >= wanted && t.dim == dim && t.base == o.base && t.inverse == o.inverse &&
        t.dtype == dtype && t.device == device)
      return {rows_of(t.angles.cos, o.offset, length), rows_of(t.angles.sin, o.offset, length)};
  const auto rows = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(wanted)));
  const detail::OutsideCapturedCall stays;
  tables->push_back(
      {dim, o.base, o.inverse, dtype, device, rows, make_angles(0, rows, dim, dtype, device, o)});
  const Angles& made = tables->back().angles;
  return {rows_of(made.cos, o.offset, length), rows_of(made.sin, o.offset, length)};
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
  dispatch(x.device(), RotaryArgs{.x = x,
                                  .cos = table.cos,
                                  .sin = table.sin,
                                  .halves = o.pairs == RotaryPairs::halves,
                                  .y = y});
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
