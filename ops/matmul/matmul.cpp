#include "norma/ops/matmul/matmul.h"

#include <array>
#include <atomic>

#include "norma/core/cuda/side_stream.h"
#include "norma/core/dispatch.h"
#include "norma/core/gradient_memory.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/matmul/kernels.h"
#include "norma/ops/matmul/product.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/view/view.h"

namespace norma {
namespace {

/// Wide rows on a GPU that would end within a sector of memory, 32 bytes, are apart by whole lines
/// of 128: products read them as operands 4 to 14 % faster, and who reads parts of them other ops.
constexpr int64_t kWideRow = 1024, kSector = 32, kLine = 128;  // bytes
/// Many narrow ones that would not begin on 16 bytes, which Hopper's products want, do.
constexpr int64_t kPiece = 16, kManyRows = 4096;
bool lies_apart(const TensorSpec& spec) {
  const int64_t row = spec.shape.back() * size_of(spec.dtype);
  if (!spec.device.is_cuda() || size_of(spec.dtype) != 2) return false;
  if (row >= kWideRow) return row % kSector != 0;
  return row % kPiece != 0 && row > kSector && spec.shape.numel() / spec.shape.back() >= kManyRows;
}
Tensor empty_apart(const TensorSpec& spec) {
  const int64_t width = spec.shape.back();
  const int64_t line =
      (width * size_of(spec.dtype) >= kWideRow ? kLine : kPiece) / size_of(spec.dtype);
  TensorSpec wide = spec;
  wide.shape[spec.shape.dim() - 1] = (width + line - 1) / line * line;
  const Tensor whole = empty(wide);
  return detail::raw_view(whole, spec.shape, whole.strides(), whole.offset());
}

void require_one_floating_dtype(std::string_view name, std::string_view first, const Tensor& a,
                                std::string_view second, const Tensor& b) {
  if (a.dtype() != b.dtype())
    throw DTypeError(
        "{}: {} and {} must have one dtype, but are {} and {}; convert one with .to(dtype)", name,
        first, second, to_string(a.dtype()), to_string(b.dtype()));
  if (!is_floating(a.dtype()))
    throw DTypeError("{}: {} and {} must be floating, but are {}; convert them with .to(float32)",
                     name, first, second, to_string(a.dtype()));
}

Shape leading(const Shape& shape) { return Shape(std::span(shape.begin(), shape.end() - 2)); }
Shape with_matrix(Shape shape, int64_t rows, int64_t cols) {
  shape.push_back(rows), shape.push_back(cols);
  return shape;
}

/// Up to so many multiplications, a product that gives a weight's gradient leaves most of a GPU
/// idle: it runs beside what the sweep goes on with. GPT-2's products, twice as large, lost by it.
constexpr int64_t kSmallProduct = int64_t{1} << 33;

/// cuBLASLt wants the rows (or columns) of one matrix apart: not repeated, not overlapping.
bool overlaps(const Tensor& t, int outer, int inner) {
  return t.shape()[outer] > 1 && t.strides()[outer] < t.shape()[inner];
}
}  // namespace

namespace detail {

DType product_dtype(const TensorSpec& spec) {
  return spec.device.is_cpu() ? stats_dtype(spec.dtype) : spec.dtype;
}
Tensor product_operand(const Tensor& t) {
  const Tensor u = t.to(product_dtype(t.spec()));
  const int row = u.dim() - 2, col = u.dim() - 1;
  const bool gpu = !u.device().is_cpu();
  if (u.strides()[col] == 1 && !(gpu && overlaps(u, row, col))) return u;
  if (u.strides()[row] == 1 && !(gpu && overlaps(u, col, row))) return u;
  return dense(u);
}

Tensor as_matrix(const Tensor& t) {
  if (t.dim() == 2) return t;
  return t.reshape({-1, t.shape().back()});
}

Tensor product(const Tensor& a, const Tensor& b, const Tensor& bias, const TensorSpec& spec,
               bool apart, bool weight) {
  const DType dtype = product_dtype(spec);
  Tensor c = apart ? empty_apart(spec) : empty(spec.shape, dtype, spec.device);
  Tensor left = product_operand(a), right = product_operand(b), out = c;
  if (b.dim() == 2 && a.dim() > 2) left = product_operand(as_matrix(a)), out = as_matrix(c);
  const Shape batch = leading(out.shape());
  const auto expand = [&](const Tensor& t) {
    const Shape& s = t.shape();
    return expanded(t, with_matrix(batch, s[s.dim() - 2], s[s.dim() - 1]));
  };
  dispatch(c.device(), MatmulArgs{.a = expand(left),
                                  .b = expand(right),
                                  .bias = bias,
                                  .c = out,
                                  .weight = weight && as_weight(right)});
  return c.to(spec.dtype);
}

}  // namespace detail

namespace detail {
bool is_rounded_for(const Tensor& x, const Tensor& w) {
  return (x.dtype() == bfloat16 || x.dtype() == float16) && w.dtype() == float32;
}
}  // namespace detail

using detail::as_matrix, detail::is_rounded_for, detail::product, detail::product_dtype,
    detail::product_operand;

TensorSpec Matmul::check(const Tensor& a, const Tensor& b) {
  require_one_floating_dtype(name, "a", a, "b", b);
  if (a.dim() < 2 || b.dim() < 2)
    throw ShapeError(
        "{}: a and b need two dimensions or more, but are {} and {}; unsqueeze a vector", name,
        a.shape(), b.shape());
  const int64_t n = a.size(-2), k = a.size(-1), m = b.size(-1);
  if (b.size(-2) != k) {
    const std::string hint = m == k ? "; did you mean b.t()?" : "";
    throw ShapeError("{}: a {} and b {} do not chain, {} ≠ {}{}", name, a.shape(), b.shape(), k,
                     b.size(-2), hint);
  }
  const Shape batch = broadcast_shapes(name, leading(a.shape()), leading(b.shape()));
  return {with_matrix(batch, n, m), a.dtype(), a.device()};
}
Tensor Matmul::forward(Context& ctx, const Tensor& a, const Tensor& b) {
  ctx.save(a, b);
  return product(a, b, Tensor(), ctx.output());
}
MatmulGrads Matmul::backward(Context& ctx, const Tensor& dc) {
  const Tensor a = ctx.saved(0), b = ctx.saved(1);
  MatmulGrads grads;
  if (ctx.needs(0)) grads.da = sum_to(matmul(dc, b.t()), a.shape());
  if (ctx.needs(1)) {
    if (b.dim() == 2)
      grads.db = matmul(as_matrix(a).t(), as_matrix(dc));
    else
      grads.db = sum_to(matmul(a.t(), dc), b.shape());
  }
  return grads;
}

TensorSpec Linear::check(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b) {
  if (!is_rounded_for(x, w)) require_one_floating_dtype(name, "x", x, "w", w);
  if (w.dim() != 2 || x.dim() < 1 || x.size(-1) != w.size(1))
    throw ShapeError("{}: w must be (d_out, d_in) for x (…, d_in), but they are {} and {}", name,
                     w.shape(), x.shape());
  if (b && (b->shape() != Shape{w.size(0)} || b->dtype() != w.dtype()))
    throw ShapeError("{}: b must be ({},) of {}, but is {} of {}", name, w.size(0),
                     to_string(w.dtype()), b->shape(), to_string(b->dtype()));
  TensorSpec spec = x.spec();
  spec.shape[spec.shape.dim() - 1] = w.size(0);
  return spec;
}
Tensor Linear::define(const Tensor& x, const Tensor& w_, const std::optional<Tensor>& b) {
  const Tensor w = w_.to(x.dtype()), rows = x.dim() == 1 ? x.unsqueeze(0) : x;
  const Tensor y = matmul(rows, w.t());
  const Tensor shaped = x.dim() == 1 ? y.squeeze(0) : y;
  return b ? shaped + b->to(x.dtype()) : shaped;
}
Tensor Linear::forward(Context& ctx, const Tensor& x, const Tensor& w_,
                       const std::optional<Tensor>& b) {
  ctx.save(x, w_);
  TensorSpec spec = ctx.output();
  const Shape shape = spec.shape;
  if (x.dim() == 1) spec.shape.insert(0, 1);
  const Tensor w = detail::rounded_weight(w_, x.dtype());
  Tensor bias;
  if (b) bias = detail::dense(detail::rounded_weight(*b, x.dtype()).to(product_dtype(x.spec())));
  if (x.dim() > 1 && detail::may_wait())
    if (const Tensor y = detail::waiting_product(x.reshape({-1, w.size(1)}), w.t(), bias);
        y.defined())
      return y.reshape(shape);
  return product(x.dim() == 1 ? x.unsqueeze(0) : x, w.t(), bias, spec, lies_apart(spec), true)
      .reshape(shape);
}
LinearGrads Linear::backward(Context& ctx, const Tensor& dy) {
  const Tensor x = ctx.saved(0), w = ctx.saved(1);
  std::optional<Tensor> arrived;
  if (ctx.needs(0) && dy.device().is_cuda())
    if (const Tensor t = detail::take_gradient(0); t.defined())
      arrived = t.reshape({-1, w.size(1)});
  LinearGrads grads =
      apply<LinearBackward>(dy.reshape({-1, w.size(0)}), x.reshape({-1, w.size(1)}), w, arrived,
                            {.dx = ctx.needs(0), .dw = ctx.needs(1), .db = ctx.needs(2)});
  if (grads.dx) grads.dx = grads.dx->reshape(x.shape());
  return grads;
}

LinearGrads LinearBackward::define(const Tensor& dy, const Tensor& x, const Tensor& w,
                                   const std::optional<Tensor>& arrived, const Options& o) {
  const Tensor d = dy.to(w.dtype());
  LinearGrads grads;
  if (o.dx) grads.dx = matmul(dy, w.to(dy.dtype()));
  if (arrived) grads.dx = *grads.dx + *arrived;
  if (o.dw) grads.dw = matmul(d.t(), x.to(w.dtype()));
  if (o.db) grads.db = d.sum(0);
  return grads;
}
namespace {
/// dy w, of x's shape: added to what has arrived, else beside the gradients of x's neighbours where
/// x is a part of wider rows.
Tensor input_gradient(const Tensor& dy, const Tensor& x, const Tensor& w,
                      const std::optional<Tensor>& arrived) {
  if (dy.device().is_cpu()) return matmul(dy, w);
  const Tensor dx = arrived ? *arrived : detail::empty_gradient(x);
  const Tensor a = product_operand(dy), b = product_operand(w);
  dispatch(dy.device(),
           MatmulArgs{.a = a, .b = b, .bias = {}, .c = dx, .accumulate = arrived.has_value()});
  dx.storage()->bump_version();
  return dx;
}
}  // namespace
LinearGrads LinearBackward::forward(Context&, const Tensor& dy, const Tensor& x, const Tensor& w,
                                    const std::optional<Tensor>& arrived, const Options& o) {
  if (o.dx && o.dw && !arrived)
    if (auto all = detail::small_layer_grads(dy, x, w, o.db))
      return {std::move(all->dx), std::move(all->dw), std::move(all->db)};
  LinearGrads grads;
  if (o.dw) {
    auto both = apply<LinearWeightBackward>(dy, x, {.dtype = w.dtype(), .db = o.db});
    grads.dw = std::move(both.dw), grads.db = std::move(both.db);
  } else if (o.db) {
    grads.db = dy.to(w.dtype()).sum(0);
  }
  if (o.dx) grads.dx = input_gradient(dy, x, detail::rounded_weight(w, dy.dtype()), arrived);
  return grads;
}

LinearWeightGrads LinearWeightBackward::define(const Tensor& dy_, const Tensor& x,
                                               const Options& o) {
  const Tensor dy = dy_.to(o.dtype);
  return {matmul(dy.t(), x.to(o.dtype)), o.db ? std::optional<Tensor>(dy.sum(0)) : none};
}
LinearWeightGrads LinearWeightBackward::forward(Context&, const Tensor& dy, const Tensor& x,
                                                const Options& o) {
  if (dy.device().is_cpu()) return define(dy, x, o);
  const auto product = [&] {
    LinearWeightGrads grads{empty({dy.size(1), x.size(1)}, o.dtype, dy.device()), none};
    if (o.db) grads.db = empty({dy.size(1)}, o.dtype, dy.device());
    const Tensor a = product_operand(dy.t()), b = product_operand(x);
    const Vec sums = grads.db ? Vec(*grads.db) : Vec();
    dispatch(dy.device(), MatmulArgs{.a = a, .b = b, .bias = {}, .c = grads.dw, .sums = sums});
    return grads;
  };
  if constexpr (kBuiltWithCuda) {
    if (dy.numel() * x.size(1) > kSmallProduct) return product();
    const auto made = detail::run_beside(dy.device(), {dy, x}, [&] {
      const LinearWeightGrads grads = product();
      std::vector<Tensor> both{grads.dw};
      if (grads.db) both.push_back(*grads.db);
      return both;
    });
    return {made[0], o.db ? std::optional<Tensor>(made[1]) : none};
  }
  return product();
}

namespace {
std::atomic<bool> tf32_allowed = false;
}  // namespace
void allow_tf32(bool on) { tf32_allowed = on; }
bool is_tf32_allowed() { return tf32_allowed; }

Tensor matmul(const Tensor& a, const Tensor& b) { return apply<Matmul>(a, b); }
Tensor linear(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b) {
  return apply<Linear>(x, w, b);
}

}  // namespace norma
