#include "norma/ops/view/view.h"

#include "norma/ops/reduce/reduce.h"

namespace norma {
namespace {

/// Strides that show x's elements in row-major order under `shape`, if there are any.
std::optional<Shape> reshaped_strides(const Tensor& x, const Shape& shape) {
  if (x.is_dense()) return dense_strides(shape);
  Shape strides = Shape::filled(shape.dim(), 0);
  int next = shape.dim() - 1;  // the new dimension to place, from the last
  int i = x.dim() - 1;
  while (i >= 0) {
    // One run of old dimensions whose elements are evenly spaced.
    const int64_t spacing = x.strides()[i];
    int64_t run = x.shape()[i], outer = spacing * run;
    while (--i >= 0 && (x.shape()[i] == 1 || x.strides()[i] == outer)) {
      run *= x.shape()[i];
      outer = spacing * run;
    }
    int64_t placed = 1;
    while (next >= 0 && (placed < run || shape[next] == 1)) {
      strides[next] = spacing * placed;
      placed *= shape[next--];
    }
    if (placed != run) return none;
  }
  while (next >= 0) strides[next--] = 1;
  return strides;
}

Shape resolved(const Tensor& x, Shape shape) {
  int unknown = -1;
  int64_t known = 1;
  for (int i = 0; i < shape.dim(); ++i) {
    if (shape[i] == -1 && unknown < 0)
      unknown = i;
    else
      known *= shape[i];
  }
  if (unknown >= 0 && known > 0 && x.numel() % known == 0) shape[unknown] = x.numel() / known;
  for (int64_t size : shape) known = size < 0 ? -1 : known;
  if (known < 0 || shape.numel() != x.numel())
    throw ShapeError("reshape: the new shape must hold the {} elements of {}, but is {}", x.numel(),
                     x.shape(), shape);
  return shape;
}

Tensor slice_view(const Tensor& x, const SliceOptions& o) {
  Shape shape = x.shape(), strides = x.strides();
  shape[o.dim] = (o.stop - o.start + o.step - 1) / o.step;
  const int64_t offset = x.offset() + o.start * strides[o.dim];
  strides[o.dim] *= o.step;
  return detail::raw_view(x, shape, strides, offset);
}

}  // namespace

Tensor Reshape::forward(Context&, const Tensor& x, const Options& o) {
  if (const auto strides = reshaped_strides(x, o.shape))
    return detail::raw_view(x, o.shape, *strides, x.offset());
  const Tensor copy = detail::dense(x);
  return detail::raw_view(copy, o.shape, dense_strides(o.shape), 0);
}
Tensor Reshape::backward(Context& ctx, const Tensor& dy) { return dy.reshape(ctx.input(0).shape); }

Tensor Permute::forward(Context&, const Tensor& x, const Options& o) {
  Shape shape, strides;
  for (int64_t i : o.order) {
    shape.push_back(x.shape()[static_cast<int>(i)]);
    strides.push_back(x.strides()[static_cast<int>(i)]);
  }
  return detail::raw_view(x, shape, strides, x.offset());
}
Tensor Permute::backward(Context& ctx, const Tensor& dy) {
  const Options& o = ctx.options();
  Shape inverse = o.order;
  for (int i = 0; i < o.order.dim(); ++i) inverse[static_cast<int>(o.order[i])] = i;
  return apply<Permute>(dy, {.order = inverse});
}

Tensor Slice::forward(Context&, const Tensor& x, const Options& o) { return slice_view(x, o); }
Tensor Slice::backward(Context& ctx, const Tensor& dy) { return apply<Unslice>(dy, ctx.options()); }

Tensor Unslice::forward(Context&, const Tensor& x, const Options& o) {
  Shape shape = x.shape();
  shape[o.dim] = o.size;
  Tensor whole = zeros(shape, x.dtype(), x.device());
  detail::copy_elements(x, slice_view(whole, o));
  return whole;
}
Tensor Unslice::backward(Context& ctx, const Tensor& dy) { return apply<Slice>(dy, ctx.options()); }

Tensor Expand::forward(Context&, const Tensor& x, const Options& o) {
  Shape strides = Shape::filled(o.shape.dim(), 0);
  const int lead = o.shape.dim() - x.dim();
  for (int i = 0; i < x.dim(); ++i)
    strides[lead + i] = x.shape()[i] == o.shape[lead + i] ? x.strides()[i] : 0;
  return detail::raw_view(x, o.shape, strides, x.offset());
}
Tensor Expand::backward(Context& ctx, const Tensor& dy) { return sum_to(dy, ctx.input(0).shape); }

Tensor ToDType::forward(Context&, const Tensor& x, const Options& o) {
  Tensor y = empty(x.shape(), o.dtype, x.device());
  detail::copy_elements(x, y);
  return y;
}
Tensor ToDType::backward(Context& ctx, const Tensor& dy) { return dy.to(ctx.input(0).dtype); }

Tensor ToDevice::forward(Context&, const Tensor& x, const Options& o) {
  Tensor y = empty(x.shape(), x.dtype(), o.device);
  detail::copy_elements(x, y);
  return y;
}
Tensor ToDevice::backward(Context& ctx, const Tensor& dy) { return dy.to(ctx.input(0).device); }

TensorSpec Concat::check(const std::vector<Tensor>& tensors, const Options& o) {
  if (tensors.empty()) throw ShapeError("concat: at least one tensor is needed, but none came");
  TensorSpec spec = tensors[0].spec();
  spec.shape[o.dim] = 0;
  for (const Tensor& t : tensors) {
    if (t.dtype() != spec.dtype)
      throw DTypeError("concat: tensors must have one dtype, but are {} and {}",
                       to_string(spec.dtype), to_string(t.dtype()));
    bool fits = t.dim() == spec.shape.dim();
    for (int i = 0; fits && i < t.dim(); ++i) fits = i == o.dim || t.shape()[i] == spec.shape[i];
    if (!fits)
      throw ShapeError("concat: tensors may differ in dimension {} only, but are {} and {}", o.dim,
                       tensors[0].shape(), t.shape());
    spec.shape[o.dim] += t.shape()[o.dim];
  }
  return spec;
}
Tensor Concat::forward(Context& ctx, const std::vector<Tensor>& tensors, const Options& o) {
  Tensor y = empty(ctx.output());
  int64_t start = 0;
  for (const Tensor& t : tensors) {
    const int64_t stop = start + t.shape()[o.dim];
    detail::copy_elements(t, slice_view(y, {.dim = o.dim, .start = start, .stop = stop}));
    start = stop;
  }
  ctx.save(tensors);  // their sizes
  return y;
}
std::vector<Tensor> Concat::backward(Context& ctx, const Tensor& dy) {
  const Options& o = ctx.options();
  std::vector<Tensor> grads;
  int64_t start = 0;
  for (int i = 0; start < dy.shape()[o.dim]; ++i) {
    const int64_t stop = start + ctx.saved(i).shape()[o.dim];
    grads.push_back(ctx.needs(i) ? dy.slice(o.dim, start, stop) : Tensor());
    start = stop;
  }
  return grads;
}

std::vector<Tensor> SplitViews::forward(Context&, const Tensor& x, const Options& o) {
  std::vector<Tensor> parts;
  int64_t start = 0;
  for (int64_t size : o.sizes) {
    parts.push_back(slice_view(x, {.dim = o.dim, .start = start, .stop = start + size}));
    start += size;
  }
  return parts;
}
namespace {
/// The tensor that the parts are, where they lie side by side already; undefined where not.
Tensor joined(const std::vector<Tensor>& parts, int dim) {
  const Tensor& first = parts[0];
  Shape shape = first.shape();
  int64_t offset = first.offset();
  shape[dim] = 0;
  for (const Tensor& part : parts) {
    if (part.storage() != first.storage() || part.strides() != first.strides() ||
        part.dtype() != first.dtype() || part.offset() != offset)
      return {};
    shape[dim] += part.shape()[dim];
    offset += part.shape()[dim] * part.strides()[dim];
  }
  return detail::raw_view(first, shape, first.strides(), first.offset());
}
}  // namespace

Tensor SplitViews::backward(Context& ctx, const std::vector<Tensor>& dy) {
  const Options& o = ctx.options();
  std::vector<Tensor> parts = dy;
  TensorSpec spec = ctx.input(0);
  for (size_t i = 0; i < parts.size(); ++i) {
    spec.shape[o.dim] = o.sizes[i];
    if (!parts[i].defined()) parts[i] = zeros(spec.shape, spec.dtype, spec.device);
  }
  // Attention makes the gradients of q, k and v in one piece of memory: then nothing is copied.
  if (!ctx.recording() && parts.size() > 1)
    if (const Tensor whole = joined(parts, o.dim); whole.defined()) return whole;
  return concat(parts, o.dim);
}

Tensor concat(const std::vector<Tensor>& tensors, int dim) {
  const int dims = tensors.empty() ? 1 : tensors[0].dim();
  return apply<Concat>(tensors, {.dim = wrap_dim("concat", dim, dims)});
}

std::vector<Tensor> split(const Tensor& x, const std::vector<int64_t>& sizes, int dim) {
  const int d = wrap_dim("split", dim, x.dim());
  int64_t total = 0;
  for (int64_t size : sizes) total += size;
  if (total != x.shape()[d])
    throw ShapeError("split: sizes must add up to {}, dimension {} of {}, but add up to {}",
                     x.shape()[d], d, x.shape(), total);
  for (int64_t size : sizes)
    if (size < 0) throw ShapeError("split: sizes must be 0 or more, but one is {}", size);
  return apply<SplitViews>(x, {.sizes = sizes, .dim = d});
}
std::vector<Tensor> chunk(const Tensor& x, int64_t n, int dim) {
  const int64_t size = x.size(dim);
  if (n < 1 || size % n != 0)
    throw ShapeError("chunk: {} must divide {}, dimension {} of {}", n, size, dim, x.shape());
  return split(x, std::vector<int64_t>(static_cast<size_t>(n), size / n), dim);
}
Tensor stack(const std::vector<Tensor>& tensors, int dim) {
  std::vector<Tensor> wider;
  for (const Tensor& t : tensors) wider.push_back(t.unsqueeze(dim));
  return concat(wider, dim);
}

Tensor sum_to(const Tensor& t, const Shape& shape) {
  if (t.shape() == shape) return t;
  Shape dims;
  const int lead = t.dim() - shape.dim();
  for (int i = 0; i < t.dim(); ++i)
    if (i < lead || (shape[i - lead] == 1 && t.shape()[i] != 1)) dims.push_back(i);
  return apply<Sum>(t, {.dims = dims, .keep = keepdim}).reshape(shape);
}

Tensor Tensor::reshape(const Shape& shape) const {
  return apply<Reshape>(*this, {.shape = resolved(*this, shape)});
}
Tensor Tensor::flatten() const { return reshape({-1}); }
Tensor Tensor::permute(std::initializer_list<int> order) const {
  Shape wrapped;
  Shape seen = Shape::filled(dim(), 0);
  for (int i : order) wrapped.push_back(wrap_dim("permute", i, dim()));
  for (int64_t i : wrapped) ++seen[static_cast<int>(i)];
  if (seen != Shape::filled(dim(), 1))
    throw ShapeError("permute: each of the {} dimensions must come once, but the order is {}",
                     dim(), wrapped);
  return apply<Permute>(*this, {.order = wrapped});
}
Tensor Tensor::transpose(int a, int b) const {
  Shape order;
  for (int i = 0; i < dim(); ++i) order.push_back(i);
  std::swap(order[wrap_dim("transpose", a, dim())], order[wrap_dim("transpose", b, dim())]);
  return apply<Permute>(*this, {.order = order});
}
Tensor Tensor::t() const {
  if (dim() < 2) throw ShapeError("t: at least two dimensions are needed, but came {}", shape());
  return transpose(-2, -1);
}
Tensor Tensor::slice(int dim_, int64_t start, int64_t stop, int64_t step) const {
  const int d = wrap_dim("slice", dim_, dim());
  const int64_t size = shape()[d];
  const int64_t first = start < 0 ? start + size : start, last = stop < 0 ? stop + size : stop;
  if (first < 0 || last > size || first > last || step < 1)
    throw ShapeError(
        "slice: must lie within dimension {} of {}, with a step of 1 or more, but is "
        "{}:{}:{}",
        d, shape(), start, stop, step);
  return apply<Slice>(*this, {.dim = d, .start = first, .stop = last, .step = step, .size = size});
}
Tensor Tensor::select(int dim_, int64_t index) const {
  const int64_t size = this->size(dim_), i = index < 0 ? index + size : index;
  if (i < 0 || i >= size)
    throw ShapeError("select: the index must be below {}, dimension {} of {}, but is {}", size,
                     dim_, shape(), index);
  return slice(dim_, i, i + 1).squeeze(dim_);
}
Tensor Tensor::expand(const Shape& wanted) const {
  if (broadcast_shapes("expand", shape(), wanted) != wanted)
    throw ShapeError("expand: {} must broadcast to the new shape, but that is {}", shape(), wanted);
  return apply<Expand>(*this, {.shape = wanted});
}
Tensor Tensor::unsqueeze(int dim_) const {
  Shape wider = shape();
  wider.insert(wrap_dim("unsqueeze", dim_, dim() + 1), 1);
  return apply<Reshape>(*this, {.shape = wider});
}
Tensor Tensor::squeeze(int dim_) const {
  const int d = wrap_dim("squeeze", dim_, dim());
  if (shape()[d] != 1)
    throw ShapeError("squeeze: dimension {} must have size 1, but the shape is {}", d, shape());
  Shape narrower = shape();
  narrower.erase(d);
  return apply<Reshape>(*this, {.shape = narrower});
}
Tensor Tensor::clone() const { return apply<ToDType>(*this, {.dtype = dtype()}); }
Tensor Tensor::contiguous() const { return is_dense() ? *this : clone(); }
Tensor Tensor::to(DType wanted) const {
  return dtype() == wanted ? *this : apply<ToDType>(*this, {.dtype = wanted});
}
Tensor Tensor::to(Device wanted) const {
  if (device() == wanted) return *this;
  require_available(wanted);
  return apply<ToDevice>(*this, {.device = wanted});
}

}  // namespace norma
