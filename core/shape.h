#pragma once

#include <cstdint>
#include <initializer_list>
#include <iosfwd>  // std::string by name, as in device.h
#include <span>
#include <string_view>

namespace norma {

namespace detail {
[[noreturn]] void throw_too_many_dimensions(size_t count);
}  // namespace detail

/// Up to kMaxDims sizes or strides, held in place so that a tensor needs no further allocation.
class Shape {
 public:
  static constexpr int kMaxDims = 8;

  constexpr Shape() : n_(0) {}
  Shape(std::initializer_list<int64_t> sizes) : Shape(std::span(sizes.begin(), sizes.size())) {}
  explicit Shape(std::span<const int64_t> sizes) : n_(static_cast<int>(sizes.size())) {
    if (sizes.size() > kMaxDims) detail::throw_too_many_dimensions(sizes.size());
    for (int i = 0; i < n_; ++i) d_[i] = sizes[static_cast<size_t>(i)];
  }
  static Shape filled(int dims, int64_t value) {
    Shape s;
    for (int i = 0; i < dims; ++i) s.push_back(value);
    return s;
  }

  constexpr int dim() const { return n_; }
  constexpr int64_t operator[](int i) const { return d_[i]; }
  constexpr int64_t& operator[](int i) { return d_[i]; }
  constexpr const int64_t* begin() const { return d_; }
  constexpr const int64_t* end() const { return d_ + n_; }
  constexpr int64_t back() const { return d_[n_ - 1]; }
  void push_back(int64_t size) {
    if (n_ == kMaxDims) detail::throw_too_many_dimensions(kMaxDims + 1);
    d_[n_++] = size;
  }
  void erase(int i) {
    for (--n_; i < n_; ++i) d_[i] = d_[i + 1];
  }
  void insert(int i, int64_t size) {
    push_back(size);
    for (int j = n_ - 1; j > i; --j) d_[j] = d_[j - 1];
    d_[i] = size;
  }
  constexpr int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < n_; ++i) n *= d_[i];
    return n;
  }
  friend constexpr bool operator==(const Shape& a, const Shape& b) {
    if (a.n_ != b.n_) return false;
    for (int i = 0; i < a.n_; ++i)
      if (a.d_[i] != b.d_[i]) return false;
    return true;
  }

 private:
  int n_;
  int64_t d_[kMaxDims];  // beyond n_ never read
};

std::string to_string(const Shape& shape);  ///< "(2, 3)", "(8,)", "()"

/// Strides of a dense tensor, last dimension fastest, counted in elements.
Shape dense_strides(const Shape& shape);
/// The shape two shapes broadcast to, as NumPy does; ShapeError naming `where` if they do not.
Shape broadcast_shapes(std::string_view where, const Shape& a, const Shape& b);
/// Dimension i of n counted from the back if negative; ShapeError naming `where` outside.
int wrap_dim(std::string_view where, int i, int n);

}  // namespace norma
