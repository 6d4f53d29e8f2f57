#pragma once

#include "norma/core/op.h"
#include "norma/core/tensor.h"

namespace norma {

// Views share their tensor's storage. The methods of Tensor (reshape, permute, slice, …) are
// defined here; each is one of the ops below, whose gradient is the inverse view.

struct ReshapeOptions {
  Shape shape = {};
  bool operator==(const ReshapeOptions&) const = default;
};
/// The same elements in row-major order under another shape. Copies where the strides do not fit.
struct Reshape {
  using Options = ReshapeOptions;
  static constexpr std::string_view name = "reshape";
  static Tensor forward(Context&, const Tensor& x, const Options&);
  static Tensor backward(Context&, const Tensor& dy);
};

struct PermuteOptions {
  Shape order = {};  ///< dimension i of the result is dimension order[i] of x
  bool operator==(const PermuteOptions&) const = default;
};
struct Permute {
  using Options = PermuteOptions;
  static constexpr std::string_view name = "permute";
  static Tensor forward(Context&, const Tensor& x, const Options&);
  static Tensor backward(Context&, const Tensor& dy);
};

struct SliceOptions {
  int dim = 0;
  int64_t start = 0, stop = 0, step = 1;
  int64_t size = 0;  ///< of the whole dimension, for the inverse
  bool operator==(const SliceOptions&) const = default;
};
struct Slice {
  using Options = SliceOptions;
  static constexpr std::string_view name = "slice";
  static Tensor forward(Context&, const Tensor& x, const Options&);
  static Tensor backward(Context&, const Tensor& dy);
};
/// Zeros of the whole size with x at the slice: Slice's transpose.
struct Unslice {
  using Options = SliceOptions;
  static constexpr std::string_view name = "unslice";
  static Tensor forward(Context&, const Tensor& x, const Options&);
  static Tensor backward(Context&, const Tensor& dy);
};

struct Expand {
  using Options = ReshapeOptions;
  static constexpr std::string_view name = "expand";
  static Tensor forward(Context&, const Tensor& x, const Options&);
  static Tensor backward(Context&, const Tensor& dy);
};

struct ToDTypeOptions {
  DType dtype = float32;
  bool operator==(const ToDTypeOptions&) const = default;
};
/// A dense copy in any dtype. Rounds to nearest even; a gradient goes back in x's dtype.
struct ToDType {
  using Options = ToDTypeOptions;
  static constexpr std::string_view name = "to";
  static Tensor forward(Context&, const Tensor& x, const Options&);
  static Tensor backward(Context&, const Tensor& dy);
};

struct ToDeviceOptions {
  Device device = cpu;
  bool operator==(const ToDeviceOptions&) const = default;
};
/// A dense copy on another device. A gradient goes back to x's.
struct ToDevice {
  using Options = ToDeviceOptions;
  static constexpr std::string_view name = "to";
  static Tensor forward(Context&, const Tensor& x, const Options&);
  static Tensor backward(Context&, const Tensor& dy);
};

/// The tensors joined along a dimension that they have; all other sizes, dtype, device alike.
Tensor concat(const std::vector<Tensor>& tensors, int dim);
struct ConcatOptions {
  int dim = 0;
  bool operator==(const ConcatOptions&) const = default;
};
struct Concat {
  using Options = ConcatOptions;
  static constexpr std::string_view name = "concat";
  static constexpr CastRule cast_rule = CastRule::widest;
  static TensorSpec check(const std::vector<Tensor>& tensors, const Options&);
  static Tensor forward(Context&, const std::vector<Tensor>& tensors, const Options&);
  static std::vector<Tensor> backward(Context&, const Tensor& dy);
};

struct SplitOptions {
  std::vector<int64_t> sizes = {};
  int dim = 0;
  bool operator==(const SplitOptions&) const = default;
};
/// Views side by side, whose gradients are joined in one pass.
struct SplitViews {
  using Options = SplitOptions;
  static constexpr std::string_view name = "split";
  static std::vector<Tensor> forward(Context&, const Tensor& x, const Options&);
  static Tensor backward(Context&, const std::vector<Tensor>& dy);
};

/// Consecutive views of those sizes along a dimension; ShapeError unless they add up to it.
std::vector<Tensor> split(const Tensor& x, const std::vector<int64_t>& sizes, int dim);
/// `n` equal views along a dimension.
std::vector<Tensor> chunk(const Tensor& x, int64_t n, int dim);
/// The tensors side by side along a new dimension.
Tensor stack(const std::vector<Tensor>& tensors, int dim);

/// Sums t over the dimensions that broadcasting added or stretched, so that it has `shape` again.
Tensor sum_to(const Tensor& t, const Shape& shape);

}  // namespace norma
