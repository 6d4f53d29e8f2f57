#include <cmath>
#include <vector>

#include "norma/core/captured_call.h"
#include "norma/core/tensor.h"

namespace norma {
namespace {

constexpr int64_t kSummarizeAbove = 1000;  // elements, as NumPy
constexpr int64_t kEdge = 3;               // rows and columns shown at each end of a summary

/// One element as NumPy would write it: integers plainly, whole floats as "2.", else 4 digits.
std::string element_text(double value, DType dtype, std::string_view spec) {
  if (dtype == bool_) return value != 0 ? "True" : "False";
  if (!spec.empty()) return format("{:" + std::string(spec) + "}", value);
  if (!is_floating(dtype)) return format("{:.0f}", value);
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  if (value == std::trunc(value) && std::abs(value) < 1e8) return format("{:.0f}.", value);
  const double size = std::abs(value);
  return size >= 1e-4 && size < 1e8 ? format("{:.4f}", value) : format("{:.4e}", value);
}

/// The elements that are shown, in order, and how to lay them out in nested brackets.
class Printer {
 public:
  Printer(const Tensor& tensor, std::string_view spec)
      : shape_(tensor.shape()), summarize_(tensor.numel() > kSummarizeAbove) {
    const std::vector<double> values = tensor.to_vector<double>();
    texts_.reserve(values.size());
    for (double value : values) texts_.push_back(element_text(value, tensor.dtype(), spec));
    measure(0, 0);
  }

  std::string text() { return block(0, 0); }

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

  void measure(int dim, int64_t offset) {
    if (dim == shape_.dim()) {
      width_ = std::max(width_, texts_[static_cast<size_t>(offset)].size());
      return;
    }
    for_shown(shape_[dim], [&](int64_t i) {
      if (i >= 0) measure(dim + 1, offset * shape_[dim] + i);
    });
  }

  std::string block(int dim, int64_t offset) const {
    if (dim == shape_.dim()) {
      const std::string& text = texts_[static_cast<size_t>(offset)];
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
      text += i < 0 ? "..." : block(dim + 1, offset * shape_[dim] + i);
    });
    return text + "]";
  }

  Shape shape_;
  bool summarize_;
  std::vector<std::string> texts_;
  size_t width_ = 0;
};

}  // namespace

std::string to_string(const Tensor& tensor, std::string_view spec) {
  detail::forbid_host_read("print", tensor);
  return Printer(tensor, spec).text();
}

}  // namespace norma
