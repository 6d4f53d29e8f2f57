#include "norma/core/shape.h"

#include <string>

#include "norma/core/error.h"

namespace norma {

void detail::throw_too_many_dimensions(size_t count) {
  throw ShapeError("shape: at most {} dimensions, but came {}", int{Shape::kMaxDims}, count);
}

std::string to_string(const Shape& shape) {
  std::string text = "(";
  for (int i = 0; i < shape.dim(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + (shape.dim() == 1 ? ",)" : ")");
}

Shape dense_strides(const Shape& shape) {
  Shape strides = shape;
  int64_t step = 1;
  for (int i = shape.dim() - 1; i >= 0; --i) {
    strides[i] = step;
    step *= shape[i];
  }
  return strides;
}

Shape broadcast_shapes(std::string_view where, const Shape& a, const Shape& b) {
  const Shape& longer = a.dim() >= b.dim() ? a : b;
  const Shape& shorter = a.dim() >= b.dim() ? b : a;
  Shape result = longer;
  const int lead = longer.dim() - shorter.dim();
  for (int i = 0; i < shorter.dim(); ++i) {
    const int64_t x = longer[lead + i], y = shorter[i];
    if (x != y && x != 1 && y != 1)
      throw ShapeError("{}: shapes must broadcast, but {} and {} differ in dimension {}", where, a,
                       b, lead + i);
    result[lead + i] = x == 1 ? y : x;
  }
  return result;
}

int wrap_dim(std::string_view where, int i, int n) {
  if (i < -n || i >= n)
    throw ShapeError("{}: dimension must be in [{}, {}), but is {}", where, -n, n, i);
  return i < 0 ? i + n : i;
}

}  // namespace norma
