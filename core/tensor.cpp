#include "norma/core/tensor.h"

#include "norma/core/allocator.h"
#include "norma/core/autograd.h"
#include "norma/core/captured_call.h"
#include "norma/core/copy.h"
#include "norma/core/cuda/runtime.h"
#include "norma/core/dispatch.h"
#include "norma/core/op.h"

namespace norma {

TensorImpl::TensorImpl() = default;
TensorImpl::~TensorImpl() = default;
void TensorImpl::destroy(TensorImpl* impl) { delete impl; }
void* TensorImpl::operator new(size_t bytes) { return norma::allocate(bytes); }
void TensorImpl::operator delete(void* p) { norma::deallocate(p, sizeof(TensorImpl)); }

namespace {

Tensor make(Ref<Storage>&& storage, const Shape& shape, const Shape& strides, int64_t offset,
            DType dtype) {
  auto impl = Ref<TensorImpl>::first(new TensorImpl);
  impl->storage = std::move(storage);
  impl->offset = offset;
  impl->shape = shape;
  impl->strides = strides;
  impl->dtype = dtype;
  return Tensor(std::move(impl));
}

void require_writable(std::string_view where, const Tensor& target) {
  if (is_grad_enabled() && target.requires_grad())
    throw GraphError(
        "{}: under recording the target must have no history, but it requires a gradient; "
        "write under NoGrad, or to a detached tensor",
        where);
}
void require_constant(std::string_view where, const Tensor& value) {
  if (is_grad_enabled() && value.requires_grad())
    throw GraphError(
        "{}: under recording the value must have no history, but it requires a gradient; "
        "detach it first",
        where);
}

bool repeats_elements(const Tensor& t) {
  for (int i = 0; i < t.dim(); ++i)
    if (t.strides()[i] == 0 && t.shape()[i] > 1) return t.numel() > 0;
  return false;
}

/// Tells observers of values that come from the host.
void wrote_values(std::string_view name, const Tensor& t) {
  if (!Observer::current()) return;
  uint64_t hash = 0xCBF29CE484222325u;  // FNV-1a
  const auto* bytes = static_cast<const unsigned char*>(t.data());
  for (int64_t i = 0; i < t.numel() * size_of(t.dtype()); ++i)
    hash = (hash ^ bytes[i]) * 0x100000001B3u;
  const auto value = static_cast<double>(hash >> 11);  // 53 bits: exact
  notify_write(name, t, {}, value);
}

/// t with stride 0 where its size 1 must serve all of `shape`.
Tensor broadcast_view(std::string_view where, const Tensor& t, const Shape& shape) {
  if (broadcast_shapes(where, t.shape(), shape) != shape)
    throw ShapeError("{}: source must broadcast to {}, but is {}", where, shape, t.shape());
  Shape strides = Shape::filled(shape.dim(), 0);
  const int lead = shape.dim() - t.dim();
  for (int i = 0; i < t.dim(); ++i) strides[lead + i] = t.shape()[i] == 1 ? 0 : t.strides()[i];
  return detail::raw_view(t, shape, strides, t.offset());
}

}  // namespace

void Tensor::throw_undefined() {
  throw ValueError("tensor: must hold values, but is empty (default-constructed or moved from)");
}

bool Tensor::is_dense() const {
  int64_t step = 1;
  for (int i = dim() - 1; i >= 0; --i) {
    if (shape()[i] != 1 && strides()[i] != step) return numel() == 0;
    step *= shape()[i];
  }
  return true;
}

void Tensor::require_span(DType wanted) const {
  detail::forbid_host_read("span", *this);
  if (dtype() != wanted)
    throw DTypeError("span: the tensor must be {}, but is {}", to_string(wanted),
                     to_string(dtype()));
  if (!device().is_cpu())
    throw DeviceError("span: the tensor must be on cpu, but is on {}; move it with .to(cpu)",
                      device());
  if (!is_dense())
    throw ShapeError("span: the tensor must be dense, but has shape {} and strides {}", shape(),
                     strides());
}

std::string to_string(const TensorSpec& spec) {
  return format("{} {} on {}", to_string(spec.dtype), spec.shape, spec.device);
}

template <class T>
T Tensor::item_as() const {
  detail::forbid_host_read("item", *this);
  if (numel() != 1)
    throw ShapeError("item: the tensor must have one element, but has shape {}", shape());
  Tensor out = empty(shape(), dtype_of<T>);
  detail::copy_elements(*this, out);
  return *static_cast<T*>(out.data());
}
template double Tensor::item_as() const;
template int64_t Tensor::item_as() const;

template <class T>
std::vector<T> Tensor::to_vector() const {
  detail::forbid_host_read("to_vector", *this);
  Tensor out = empty(shape(), dtype_of<T>);
  detail::copy_elements(*this, out);
  const T* values = static_cast<const T*>(out.data());
  return std::vector<T>(values, values + numel());
}
template std::vector<float> Tensor::to_vector() const;
template std::vector<double> Tensor::to_vector() const;
template std::vector<int32_t> Tensor::to_vector() const;
template std::vector<int64_t> Tensor::to_vector() const;

const Tensor& Tensor::fill_(double value) const {
  require_writable("fill_", *this);
  dispatch(device(), FillArgs{.target = *this, .value = value});
  storage()->bump_version();
  notify_write("fill_", *this, {}, value);
  return *this;
}

const Tensor& Tensor::copy_(const Tensor& source) const {
  require_writable("copy_", *this);
  require_constant("copy_", source);
  detail::copy_elements(broadcast_view("copy_", source, shape()), *this);
  storage()->bump_version();
  notify_write("copy_", *this, source);
  return *this;
}

const Tensor& Tensor::add_(const Tensor& other) const {
  require_writable("add_", *this);
  require_constant("add_", other);
  if (repeats_elements(*this))
    throw ShapeError(
        "add_: the elements of the target must lie apart, but with shape {} it has strides {}; "
        "clone() it first",
        shape(), strides());
  if (other.shape() != shape())
    throw ShapeError("add_: other must be {}, but is {}", shape(), other.shape());
  if (other.dtype() != dtype())
    throw DTypeError("add_: other must be {}, but is {}; convert it first", to_string(dtype()),
                     to_string(other.dtype()));
  if (other.device() != device())
    throw DeviceError("add_: other must be on {}, but is on {}; move it with .to(device)", device(),
                      other.device());
  dispatch(device(), AddIntoArgs{.source = other, .target = *this});
  storage()->bump_version();
  notify_write("add_", *this, other);
  return *this;
}

namespace {
/// The bytes of a dense tensor, whose strides are written: in one pass over the sizes, since a tiny
/// op makes two or three tensors.
int64_t lay_out(const Shape& shape, DType dtype, Shape& strides) {
  strides = shape;
  int64_t elements = 1, bytes = 0;
  bool countable = true;
  for (int i = shape.dim() - 1; i >= 0; --i) {
    if (shape[i] < 0)
      throw ShapeError("empty: sizes must be 0 or more, but the shape is {}", shape);
    strides[i] = elements;
    countable &= !__builtin_mul_overflow(elements, shape[i], &elements);
  }
  if (!countable || __builtin_mul_overflow(elements, size_of(dtype), &bytes))
    throw ShapeError("empty: a tensor must have less than 2^63 bytes, but the shape is {} of {}",
                     shape, to_string(dtype));
  return bytes;
}
}  // namespace

Tensor empty(const TensorSpec& spec) {
  auto impl = Ref<TensorImpl>::first(new TensorImpl);
  impl->shape = spec.shape;
  impl->storage = Storage::allocate(lay_out(spec.shape, spec.dtype, impl->strides), spec.device);
  impl->dtype = spec.dtype;
  return Tensor(std::move(impl));
}
Tensor empty(const Shape& shape, DType dtype, Device device) {
  return empty(TensorSpec{shape, dtype, device});
}
Tensor empty_like(const Tensor& t) { return empty(t.spec()); }
Tensor empty_pinned(const Shape& shape, DType dtype) {
  Shape strides;
  const int64_t bytes = lay_out(shape, dtype, strides);
  return make(Storage::allocate_pinned(bytes), shape, strides, 0, dtype);
}
Tensor full(const Shape& shape, double value, DType dtype, Device device) {
  Tensor t = empty(shape, dtype, device);
  dispatch(device, FillArgs{.target = t, .value = value});
  notify_write("full", t, {}, value);
  return t;
}
Tensor full_like(const Tensor& t, double value) {
  return full(t.shape(), value, t.dtype(), t.device());
}
Tensor zeros(const Shape& shape, DType dtype, Device device) {
  return full(shape, 0, dtype, device);
}
Tensor zeros_like(const Tensor& t) { return full_like(t, 0); }
Tensor ones(const Shape& shape, DType dtype, Device device) {
  return full(shape, 1, dtype, device);
}
Tensor ones_like(const Tensor& t) { return full_like(t, 1); }
Tensor scalar(double value, DType dtype, Device device) { return full({}, value, dtype, device); }

namespace {
Tensor ramp(int64_t n, double first, double step, DType dtype, Device device) {
  Tensor t = empty({n}, dtype, device);
  dispatch(device, RampArgs{.target = t, .first = first, .step = step});
  return t;
}
}  // namespace

Tensor arange(int64_t n, DType dtype, Device device) { return ramp(n, 0, 1, dtype, device); }
Tensor linspace(double first, double last, int64_t n, DType dtype, Device device) {
  const double step = n > 1 ? (last - first) / static_cast<double>(n - 1) : 0;
  Tensor t = ramp(n, first, step, dtype, device);
  if (n > 1) detail::raw_view(t, {1}, {1}, n - 1).fill_(last);  // exactly
  notify_write("linspace", t, {}, first);
  notify_write("linspace", t, {}, last);
  return t;
}
Tensor eye(int64_t n, DType dtype, Device device) {
  Tensor t = zeros({n, n}, dtype, device);
  detail::raw_view(t, {n}, {n + 1}, 0).fill_(1);
  return t;
}

template <class T>
Tensor from_span(std::span<const T> values, std::optional<Shape> shape) {
  const auto n = static_cast<int64_t>(values.size());
  const Shape wanted = shape.value_or(Shape{n});
  if (wanted.numel() != n)
    throw ShapeError("from_span: shape {} needs {} values, but came {}", wanted, wanted.numel(), n);
  Tensor t = empty(wanted, dtype_of<T>);
  std::copy(values.begin(), values.end(), static_cast<T*>(t.data()));
  wrote_values("from_span", t);
  return t.to(default_device());
}
template Tensor from_span(std::span<const float>, std::optional<Shape>);
template Tensor from_span(std::span<const double>, std::optional<Shape>);
template Tensor from_span(std::span<const BFloat16>, std::optional<Shape>);
template Tensor from_span(std::span<const Float16>, std::optional<Shape>);
template Tensor from_span(std::span<const int32_t>, std::optional<Shape>);
template Tensor from_span(std::span<const int64_t>, std::optional<Shape>);
template Tensor from_span(std::span<const bool>, std::optional<Shape>);

Tensor tensor(std::initializer_list<double> values, DType dtype) {
  const Tensor exact = from_span(std::span<const double>(values.begin(), values.size()));
  Tensor out = empty(exact.shape(), dtype, default_device());
  detail::copy_elements(exact, out);
  return out;
}

namespace detail {

Tensor raw_view(const Tensor& t, const Shape& shape, const Shape& strides, int64_t offset) {
  return make(Ref(t.storage()), shape, strides, offset, t.dtype());
}

namespace {
/// Bytes cross between devices as they are: converted where they come from, spread where they go.
void copy_across(const Tensor& source, const Tensor& target) {
  Tensor from = source, to = target;
  if (source.dtype() != target.dtype() || !source.is_dense()) {
    from = empty(source.shape(), target.dtype(), source.device());
    copy_elements(source, from);
  }
  if (!target.is_dense()) to = empty_like(target);
  if constexpr (kBuiltWithCuda)
    cuda_transfer(to.data(), to.device(), from.data(), from.device(),
                  from.numel() * size_of(from.dtype()));
  if (!to.is_same(target)) copy_elements(to, target);
}
}  // namespace

void copy_elements(const Tensor& source, const Tensor& target) {
  if (source.device() == target.device())
    dispatch(source.device(), CopyArgs{.source = source, .target = target});
  else
    copy_across(source, target);
}

Tensor dense(const Tensor& t) {
  if (t.is_dense()) return t;
  Tensor copy = empty_like(t);
  copy_elements(t, copy);
  return copy;
}

ConstView expanded(const Tensor& t, const Shape& shape) {
  ConstView view = t;
  if (t.shape() == shape) return view;
  view.strides = Shape::filled(shape.dim(), 0);
  const int lead = shape.dim() - t.dim();
  for (int i = 0; i < t.dim(); ++i) view.strides[lead + i] = t.shape()[i] == 1 ? 0 : t.strides()[i];
  view.shape = shape;
  return view;
}

EvenRows even_rows_of(const Tensor& t) {
  if (t.dim() == 0) return {1, 1, 1};
  const int64_t cols = t.shape().back();
  EvenRows even{1, cols, cols};
  for (int i = t.dim() - 2; i >= 0; --i) {
    if (even.rows == 1 && t.shape()[i] != 1) even.row_stride = t.strides()[i];
    even.rows *= t.shape()[i];
  }
  return even;
}

}  // namespace detail

bool has_even_rows(const Tensor& t) {
  if (t.dim() == 0 || t.numel() == 0) return true;
  if (t.shape().back() > 1 && t.strides()[t.dim() - 1] != 1) return false;
  int64_t wanted = -1;  // the stride that the next dimension out must have, once one is known
  for (int i = t.dim() - 2; i >= 0; --i) {
    if (t.shape()[i] == 1) continue;
    if (wanted >= 0 && t.strides()[i] != wanted) return false;
    wanted = t.strides()[i] * t.shape()[i];
  }
  return true;
}

Tensor even_rows(const Tensor& t) {
  if (has_even_rows(t)) return t;
  Tensor copy = empty_like(t);
  detail::copy_elements(t, copy);
  return copy;
}

}  // namespace norma
