#pragma once

#include <cstdint>
#include <type_traits>

#include "norma/core/dtype.h"
#include "norma/core/shape.h"

namespace norma {

class Tensor;

// What kernels see of a tensor: a pointer, sizes, strides in elements and the dtype. They convert
// from tensors as string_view does from strings, and own nothing. The accessors are constexpr so
// that device code may call them.

/// A flat run of n elements.
template <class Byte>
struct BasicVec {
  Byte* data = nullptr;
  int64_t n = 0;
  DType dtype = float32;

  BasicVec() = default;
  BasicVec(const Tensor& tensor);  // NOLINT: a view, like string_view
  template <class T>
  constexpr auto* as() const {
    return static_cast<std::conditional_t<std::is_const_v<Byte>, const T, T>*>(data);
  }
  template <class T>
  constexpr auto& at(int64_t i) const {
    return as<T>()[i];
  }
  constexpr explicit operator bool() const { return data != nullptr; }
};
using Vec = BasicVec<void>;
using ConstVec = BasicVec<const void>;

/// Rows of cols dense elements, row_stride apart: a tensor's last dimension and all before it.
template <class Byte>
struct BasicRows {
  Byte* data = nullptr;
  int64_t rows = 0, cols = 0, row_stride = 0;
  DType dtype = float32;

  BasicRows() = default;
  BasicRows(const Tensor& tensor);  // NOLINT: needs even rows (see even_rows)
  template <class T>
  constexpr auto* row(int64_t i) const {
    return static_cast<std::conditional_t<std::is_const_v<Byte>, const T, T>*>(data) +
           i * row_stride;
  }
  constexpr explicit operator bool() const { return data != nullptr; }
};
using Rows = BasicRows<void>;
using ConstRows = BasicRows<const void>;

/// Any strides, up to eight dimensions.
template <class Byte>
struct BasicView {
  Byte* data = nullptr;
  Shape shape, strides;
  DType dtype = float32;

  BasicView() = default;
  BasicView(const Tensor& tensor);  // NOLINT
  template <class T>
  constexpr auto* as() const {
    return static_cast<std::conditional_t<std::is_const_v<Byte>, const T, T>*>(data);
  }
};
using View = BasicView<void>;
using ConstView = BasicView<const void>;

}  // namespace norma
