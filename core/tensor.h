#pragma once

#include <functional>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "norma/core/device.h"
#include "norma/core/dtype.h"
#include "norma/core/error.h"
#include "norma/core/ref.h"
#include "norma/core/shape.h"
#include "norma/core/storage.h"
#include "norma/core/view.h"
#include "norma/core/waiting_launch.h"

namespace norma {

class Node;
class Tensor;
namespace detail {
class Lent;
}

/// An absent optional argument: `layer_norm(x, w, none)`.
inline constexpr std::nullopt_t none = std::nullopt;

/// Whether a reduced dimension stays, with size 1: `x.mean(-1, keepdim)`.
enum class KeepDim { no, yes };
inline constexpr KeepDim keepdim = KeepDim::yes;

/// What a tensor looks like, without its values.
struct TensorSpec {
  Shape shape;
  DType dtype = float32;
  Device device = cpu;
  bool operator==(const TensorSpec&) const = default;
};
std::string to_string(const TensorSpec& spec);  ///< float32 (2, 3) on cpu

/// What a Tensor points to. Views share the storage; each has a shape, strides and offset.
struct TensorImpl : RefCounted {
  Ref<Storage> storage;
  int64_t offset = 0;  ///< in elements
  Shape shape, strides;
  DType dtype = float32;
  bool requires_grad = false;
  uint32_t output_index = 0;     ///< which result of `node` this is
  Ref<Node> node;                ///< the op that made it; for a leaf the node that holds .grad
  Ref<TensorImpl> rounded;       ///< a weight's values in a half type (core/autocast.h) …
  uint32_t rounded_version = 0;  ///< … as they were at this version of the storage

  TensorImpl();
  ~TensorImpl();
  static void destroy(TensorImpl* impl);
  static void* operator new(size_t bytes);
  static void operator delete(void* p);
};

/// A cheap handle to an n-dimensional array: copying it shares the values.
class Tensor {
 public:
  Tensor() = default;  ///< no tensor; every question but defined() is an error
  explicit Tensor(Ref<TensorImpl> impl) : impl_(std::move(impl)) {}

  bool defined() const { return static_cast<bool>(impl_); }
  TensorImpl& impl() const {
    if (!impl_) throw_undefined();
    return *impl_;
  }
  bool is_same(const Tensor& other) const { return impl_ == other.impl_; }

  const Shape& shape() const { return impl().shape; }
  const Shape& strides() const { return impl().strides; }
  int64_t offset() const { return impl().offset; }
  DType dtype() const { return impl().dtype; }
  Device device() const { return impl().storage->device(); }
  int dim() const { return shape().dim(); }
  int64_t size(int i) const { return shape()[wrap_dim("size", i, dim())]; }
  int64_t numel() const { return shape().numel(); }
  TensorSpec spec() const { return {shape(), dtype(), device()}; }
  bool is_dense() const;  ///< row-major without gaps
  const Ref<Storage>& storage() const { return impl().storage; }
  void* data() const {
    if constexpr (kBuiltWithCuda)
      if (detail::launch_waits) [[unlikely]]
        detail::start_waiting_launch();
    return impl().storage->data() + impl().offset * size_of(impl().dtype);
  }
  /// The elements of a dense tensor on the CPU; throws where dtype, device or strides do not fit.
  template <class T>
  std::span<T> span() const {
    require_span(dtype_of<std::remove_const_t<T>>);
    return {static_cast<T*>(data()), static_cast<size_t>(numel())};
  }
  template <class T = double>
  T item() const {                          ///< the one element, converted
    if constexpr (std::is_integral_v<T>) {  // an int64 beyond 2⁵³ has no double of its own
      if (!is_floating(dtype())) return static_cast<T>(item_as<int64_t>());
    }
    return static_cast<T>(item_as<double>());
  }
  template <class T>
  std::vector<T> to_vector() const;  ///< every element in row-major order, converted

  // Autograd (core/autograd.h).
  /// Whether operations on this tensor are recorded: a leaf that asked, or made from one.
  bool requires_grad() const;
  const Tensor& requires_grad_(bool on = true) const;  ///< leaves of a floating dtype only
  bool is_leaf() const;                                ///< not made by a recorded operation
  bool has_grad() const;
  Tensor grad() const;  ///< GraphError where there is none
  void set_grad(const Tensor& grad) const;
  void clear_grad() const;
  void backward() const;                           ///< of a one-element tensor
  void backward(const Tensor& grad_output) const;  ///< grad_output like this tensor
  Tensor detach() const;                           ///< the same values without history
  /// Calls hook(grad) when a sweep knows this tensor's gradient; a tensor it returns replaces it.
  using Hook = std::function<std::optional<Tensor>(const Tensor& grad)>;
  void register_hook(Hook hook) const;

  // In place, seen by every view of the storage; its version counts them.
  const Tensor& fill_(double value) const;
  const Tensor& zero_() const { return fill_(0); }
  const Tensor& copy_(const Tensor& source) const;  ///< converts and broadcasts
  const Tensor& add_(const Tensor& other) const;    ///< other of the same shape and dtype

  // The rest is a closed list of methods defined in ops/; later ops are free functions.
  // ops/view: without a copy where the strides allow it
  Tensor reshape(const Shape& shape) const;  ///< one size may be -1
  Tensor transpose(int a, int b) const;
  Tensor t() const;  ///< the last two dimensions exchanged
  Tensor permute(std::initializer_list<int> order) const;
  Tensor slice(int dim, int64_t start, int64_t stop, int64_t step = 1) const;
  Tensor select(int dim, int64_t index) const;
  Tensor expand(const Shape& shape) const;  ///< repeats size-1 dimensions by stride 0
  Tensor unsqueeze(int dim) const;
  Tensor squeeze(int dim) const;
  Tensor flatten() const;
  Tensor contiguous() const;  ///< itself if dense, else a dense copy
  Tensor clone() const;       ///< a dense copy
  Tensor to(DType dtype) const;
  Tensor to(Device device) const;
  // ops/elementwise
  Tensor square() const;
  Tensor exp() const;
  Tensor log() const;
  Tensor sqrt() const;
  Tensor rsqrt() const;
  Tensor abs() const;
  Tensor tanh() const;
  // ops/reduce
  Tensor sum() const;
  Tensor sum(int dim, KeepDim keep = KeepDim::no) const;
  Tensor mean() const;
  Tensor mean(int dim, KeepDim keep = KeepDim::no) const;
  Tensor max() const;
  Tensor max(int dim, KeepDim keep = KeepDim::no) const;
  Tensor var(int dim, KeepDim keep = KeepDim::no) const;  ///< the biased one, as norms use it
  Tensor norm() const;                                    ///< √Σx²

 private:
  friend class detail::Lent;
  void give_up() { impl_.give_up(); }
  [[noreturn]] static void throw_undefined();
  void require_span(DType dtype) const;
  template <class T>
  T item_as() const;
  Ref<TensorImpl> impl_;
};

/// NumPy's way of printing; the spec after the colon applies to the elements ("{:.2f}").
std::string to_string(const Tensor& tensor, std::string_view spec = {});

// Factories. The `like` ones take shape, dtype and device of t; the others put the tensor on the
// default device (DefaultDevice in core/device.h) unless told, empty on the processor.
Tensor empty(const TensorSpec& spec);
Tensor empty(const Shape& shape, DType dtype = float32, Device device = cpu);
Tensor empty_like(const Tensor& t);
/// On the processor, in memory that a GPU copies from without a wait. DeviceError without a GPU.
Tensor empty_pinned(const Shape& shape, DType dtype = float32);
Tensor zeros(const Shape& shape, DType dtype = float32, Device device = default_device());
Tensor zeros_like(const Tensor& t);
Tensor ones(const Shape& shape, DType dtype = float32, Device device = default_device());
Tensor ones_like(const Tensor& t);
Tensor full(const Shape& shape, double value, DType dtype = float32,
            Device device = default_device());
Tensor full_like(const Tensor& t, double value);
Tensor arange(int64_t n, DType dtype = int64, Device device = default_device());
Tensor linspace(double first, double last, int64_t n, DType dtype = float32,
                Device device = default_device());
Tensor eye(int64_t n, DType dtype = float32, Device device = default_device());
/// A copy of `values`, of that shape (default: one dimension).
template <class T>
Tensor from_span(std::span<const T> values, std::optional<Shape> shape = none);
Tensor tensor(std::initializer_list<double> values, DType dtype = float32);
Tensor scalar(double value, DType dtype = float32, Device device = default_device());

namespace detail {
/// Another view of t's storage. Offset and strides in elements.
Tensor raw_view(const Tensor& t, const Shape& shape, const Shape& strides, int64_t offset);
/// Copies and converts element by element; any strides and devices on either side, shapes equal.
void copy_elements(const Tensor& source, const Tensor& target);
/// t itself if it is dense, else a dense copy.
Tensor dense(const Tensor& t);
}  // namespace detail

/// t, or a dense copy where its rows are not evenly spaced runs of dense elements.
Tensor even_rows(const Tensor& t);
bool has_even_rows(const Tensor& t);

template <class Byte>
BasicVec<Byte>::BasicVec(const Tensor& tensor) {
  if (tensor.defined()) data = tensor.data(), n = tensor.numel(), dtype = tensor.dtype();
}
namespace detail {
struct EvenRows {
  int64_t rows, cols, row_stride;
};
EvenRows even_rows_of(const Tensor& t);
}  // namespace detail
template <class Byte>
BasicRows<Byte>::BasicRows(const Tensor& tensor) {
  if (!tensor.defined()) return;
  const auto even = detail::even_rows_of(tensor);
  data = tensor.data(), dtype = tensor.dtype();
  rows = even.rows, cols = even.cols, row_stride = even.row_stride;
}
namespace detail {
/// t as a kernel reads it where it broadcasts to `shape`: stride 0 where it repeats.
ConstView expanded(const Tensor& t, const Shape& shape);
}  // namespace detail
template <class Byte>
BasicView<Byte>::BasicView(const Tensor& tensor) {
  if (tensor.defined())
    data = tensor.data(), shape = tensor.shape(), strides = tensor.strides(),
    dtype = tensor.dtype();
}

}  // namespace norma
