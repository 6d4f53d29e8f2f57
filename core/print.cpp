#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "norma/core/captured_call.h"
#include "norma/core/format.h"
#include "norma/core/tensor.h"

namespace norma {
namespace {

constexpr int64_t kSummarizeAbove = 1000;  // elements, as NumPy
constexpr int64_t kEdge = 3;               // rows and columns shown at each end of a summary

/// One element as NumPy would write it: whole floats as "2.", else 4 digits.
std::string element_text(double value, std::string_view spec) {
  if (!spec.empty()) return format("{:" + std::string(spec) + "}", value);
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  if (value == std::trunc(value) && std::abs(value) < 1e8) return format("{:.0f}.", value);
  const double size = std::abs(value);
  return size >= 1e-4 && size < 1e8 ? format("{:.4f}", value) : format("{:.4e}", value);
}

/// Plainly, and all digits of them: not every int64 is a double.
std::string element_text(int64_t value, std::string_view spec) {
  return spec.empty() ? std::to_string(value) : element_text(static_cast<double>(value), spec);
}

/// The elements that are shown, in order, and how to lay them out in nested brackets. The others
/// get no text: a large tensor would take longer, and more memory, than its own.
class Printer {
 public:
  Printer(const Tensor& tensor, std::string_view spec)
      : shape_(tensor.shape()), summarize_(tensor.numel() > kSummarizeAbove) {
    if (is_floating(tensor.dtype()))
      write<double>(tensor, [=](double v) { return element_text(v, spec); });
    else if (tensor.dtype() == bool_)
      write<int32_t>(tensor, [](int32_t v) { return std::string(v != 0 ? "True" : "False"); });
    else
      write<int64_t>(tensor, [=](int64_t v) { return element_text(v, spec); });
  }

  std::string text() {
    size_t next = 0;
    return block(0, next);
  }

 private:
  template <class F>
  void for_shown(int64_t n, const F& f) const {
    for (int64_t i = 0; i < n; ++i) {
      if (summarize_ && n > 2 * kEdge && i == kEdge) {
        f(-1);
        i = n - kEdge;
      }
      f(i);
    }
  }

  template <class F>
  void for_elements(int dim, int64_t offset, const F& f) const {
    if (dim == shape_.dim()) return f(static_cast<size_t>(offset));
    for_shown(shape_[dim], [&](int64_t i) {
      if (i >= 0) for_elements(dim + 1, offset * shape_[dim] + i, f);
    });
  }

  template <class T, class F>
  void write(const Tensor& tensor, const F& text_of) {
    const std::vector<T> values = tensor.to_vector<T>();
    for_elements(0, 0, [&](size_t i) {
      texts_.push_back(text_of(values[i]));
      width_ = std::max(width_, texts_.back().size());
    });
  }

  /// `next`: which text comes next.
  std::string block(int dim, size_t& next) const {
    if (dim == shape_.dim()) {
      const std::string& text = texts_[next++];
      return shape_.dim() == 0 ? text : std::string(width_ - text.size(), ' ') + text;
    }
    const bool innermost = dim + 1 == shape_.dim();
    const std::string gap = innermost
                                ? " "
                                : std::string(static_cast<size_t>(shape_.dim() - 1 - dim), '\n') +
                                      std::string(static_cast<size_t>(dim) + 1, ' ');
    std::string text = "[";
    for_shown(shape_[dim], [&](int64_t i) {
      if (text.size() > 1) text += gap;
      text += i < 0 ? "..." : block(dim + 1, next);
    });
    return text + "]";
  }

  Shape shape_;
  bool summarize_;
  std::vector<std::string> texts_;  // of those that are shown
  size_t width_ = 0;
};

}  // namespace

std::string to_string(const Tensor& tensor, std::string_view spec) {
  detail::forbid_host_read("print", tensor);
  return Printer(tensor, spec).text();
}

}  // namespace norma
