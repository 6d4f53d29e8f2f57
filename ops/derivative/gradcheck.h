#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "norma/core/op.h"
#include "norma/core/tensor.h"

namespace norma {

/// A function of some tensors, as gradient checks and derivatives take it.
using TensorFunction = std::function<std::vector<Tensor>(const std::vector<Tensor>&)>;

struct GradcheckOptions {
  double step = 1e-5;  ///< times max(1, |x|): truncation step²/6 f''' meets rounding 1e-16/step
  double tolerance = 1e-6;  ///< largest |numeric − analytic| / max(1, |numeric|, |analytic|)
  uint64_t seed = 1;        ///< of the weights that make one number of the results
};

/// What a gradient check found. Converts to whether it passed; text names the worst element.
struct GradcheckReport {
  bool passed = false;
  std::string text;
  double worst = 0;  ///< the largest relative difference seen
  explicit operator bool() const { return passed; }
};
std::string to_string(const GradcheckReport& report);

/// Compares the gradient of L = Σ r ⊙ f(x), r random, with central differences
///   (L(x + h e_i) − L(x − h e_i)) / 2h
/// for every element of every float64 input. Inputs of other dtypes stay as they are; results that
/// are not floating or do not depend on the inputs are left out.
/// Throws DTypeError where no input is float64: smaller dtypes drown the difference in rounding.
GradcheckReport gradcheck(const TensorFunction& f, const std::vector<Tensor>& inputs,
                          const GradcheckOptions& options = {});

/// The same for the gradient itself: checks (x, dy) ↦ ∂(Σ dy ⊙ f(x))/∂x, recorded by create_graph.
GradcheckReport gradgradcheck(const TensorFunction& f, const std::vector<Tensor>& inputs,
                              const GradcheckOptions& options = {});

namespace detail {

inline void collect(const Tensor& t, std::vector<Tensor>& flat) { flat.push_back(t); }
inline void collect(const std::optional<Tensor>& t, std::vector<Tensor>& flat) {
  if (t) flat.push_back(*t);
}
inline void collect(std::nullopt_t, std::vector<Tensor>&) {}
inline void collect(const std::vector<Tensor>& tensors, std::vector<Tensor>& flat) {
  flat.insert(flat.end(), tensors.begin(), tensors.end());
}
template <class Options>
void collect(const Options&, std::vector<Tensor>&) {}

inline Tensor replaced(const Tensor&, const std::vector<Tensor>& flat, size_t& next) {
  return flat[next++];
}
inline std::optional<Tensor> replaced(const std::optional<Tensor>& t,
                                      const std::vector<Tensor>& flat, size_t& next) {
  return t ? std::optional<Tensor>(flat[next++]) : none;
}
inline std::nullopt_t replaced(std::nullopt_t, const std::vector<Tensor>&, size_t&) { return none; }
inline std::vector<Tensor> replaced(const std::vector<Tensor>& tensors,
                                    const std::vector<Tensor>& flat, size_t& next) {
  std::vector<Tensor> result;
  for (size_t i = 0; i < tensors.size(); ++i) result.push_back(flat[next++]);
  return result;
}
template <class Options>
const Options& replaced(const Options& options, const std::vector<Tensor>&, size_t&) {
  return options;
}

template <class R>
std::vector<Tensor> results_of(R result) {
  Node::Gradients flat;
  flatten(std::move(result), flat);
  std::vector<Tensor> present;
  for (const Tensor& t : flat)
    if (t.defined()) present.push_back(t);
  return present;
}

/// apply<Op>(args…) as a function of the tensors among the arguments.
template <class Op, class... A>
TensorFunction function_of(const A&... args) {
  return [args...](const std::vector<Tensor>& flat) {
    size_t next = 0;
    // Braces evaluate from left to right.
    const std::tuple<decltype(replaced(args, flat, next))...> fresh{replaced(args, flat, next)...};
    return std::apply([](const auto&... a) { return results_of(apply<Op>(a...)); }, fresh);
  };
}
template <class... A>
std::vector<Tensor> tensors_of(const A&... args) {
  std::vector<Tensor> flat;
  (collect(args, flat), ...);
  return flat;
}

}  // namespace detail

/// Of an op at these arguments, options last and named by their type:
///   gradcheck<RmsNorm>(randn({3, 7}, float64), randn({7}, float64), RmsNormOptions{.eps = 1e-3})
template <class Op, class... A>
GradcheckReport gradcheck(const A&... args) {
  return gradcheck(detail::function_of<Op>(args...), detail::tensors_of(args...));
}
template <class Op, class... A>
GradcheckReport gradgradcheck(const A&... args) {
  return gradgradcheck(detail::function_of<Op>(args...), detail::tensors_of(args...));
}

}  // namespace norma
