#pragma once

#include "norma/core/op.h"
#include "norma/core/tensor.h"

namespace norma {

// What stands in a norm's place without statistics: a bounded function of each element.

/// DyT, the dynamic tanh (Zhu et al. 2025, arXiv:2503.10622): y = w ⊙ tanh(αx) + b.
/// x (…, D), floating; alpha one element, learned, 0.5 at first; w and b (D,) or none, of any
/// floating dtype. With t = tanh(αx), g = w ⊙ dy, e = g ⊙ (1 − t²):
///   dx = α e,  dα = Σ e ⊙ x,  dw = Σ_rows dy ⊙ t,  db = Σ_rows dy
/// Throws ShapeError or DTypeError where arguments do not fit.
Tensor dyt(const Tensor& x, const Tensor& alpha, const std::optional<Tensor>& w = none,
           const std::optional<Tensor>& b = none);
/// Derf (Chen et al. 2025, arXiv:2512.10938): y = w ⊙ erf(αx + s) + b, shift s one element,
/// learned, 0 at first. As DyT with t = erf(αx + s), e = g ⊙ 2/√π e^(−(αx + s)²);  ds = Σ e.
Tensor derf(const Tensor& x, const Tensor& alpha, const Tensor& shift,
            const std::optional<Tensor>& w = none, const std::optional<Tensor>& b = none);

enum class SquashFunction { tanh, erf };
struct SquashOptions {
  SquashFunction function = SquashFunction::tanh;
  bool operator==(const SquashOptions&) const = default;
};
/// y = w ⊙ f(αx + s) + b.
struct Squash {
  using Options = SquashOptions;
  static constexpr std::string_view name = "squash";
  static TensorSpec check(const Tensor& x, const Tensor& alpha, const std::optional<Tensor>& shift,
                          const std::optional<Tensor>& w, const std::optional<Tensor>& b,
                          const Options&);
  static Tensor define(const Tensor& x, const Tensor& alpha, const std::optional<Tensor>& shift,
                       const std::optional<Tensor>& w, const std::optional<Tensor>& b,
                       const Options&);
  static Tensor forward(Context&, const Tensor& x, const Tensor& alpha,
                        const std::optional<Tensor>& shift, const std::optional<Tensor>& w,
                        const std::optional<Tensor>& b, const Options&);
  static std::vector<Tensor> backward(Context&, const Tensor& dy);
};

struct SquashBackwardOptions {
  SquashOptions squash;
  std::optional<DType> dx = none, dalpha = none, dshift = none, dw = none, db = none;
  bool operator==(const SquashBackwardOptions&) const = default;
};
struct SquashGrads {
  std::optional<Tensor> dx, dalpha, dshift, dw, db;
};
struct SquashBackward {
  using Options = SquashBackwardOptions;
  static constexpr std::string_view name = "squash_backward";
  static SquashGrads define(const Tensor& dy, const Tensor& x, const Tensor& alpha,
                            const std::optional<Tensor>& shift, const std::optional<Tensor>& w,
                            const Options&);
  static SquashGrads forward(Context&, const Tensor& dy, const Tensor& x, const Tensor& alpha,
                             const std::optional<Tensor>& shift, const std::optional<Tensor>& w,
                             const Options&);
};

}  // namespace norma
