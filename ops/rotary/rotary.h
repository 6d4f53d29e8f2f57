#pragma once

#include "norma/core/op.h"
#include "norma/core/tensor.h"

namespace norma {

/// Which elements of a head turn together: i and i + D/2 (GPT-NeoX, LLaMA), or 2i and 2i + 1 (the
/// paper).
enum class RotaryPairs { halves, neighbours };
struct RotaryOptions {
  double base = 10000;
  int64_t offset = 0;  ///< position of the first row
  RotaryPairs pairs = RotaryPairs::halves;
  bool inverse = false;  ///< turn back: the gradient
  bool operator==(const RotaryOptions&) const = default;
};

/// Rotary position embedding (Su et al. 2021, arXiv:2104.09864): in x (…, T, D), D even, pair i of
/// row t turns by the angle (offset + t) · base^(−2i/D):
///   (a, b) → (a cos θ − b sin θ, a sin θ + b cos θ)
/// The gradient turns back. Angles are float64, the product float32 (float64 for float64).
/// x floating, any strides. Throws ShapeError for an odd D.
Tensor rotary(const Tensor& x, const RotaryOptions& options = {});

struct Rotary {
  using Options = RotaryOptions;
  static constexpr std::string_view name = "rotary";
  static TensorSpec check(const Tensor& x, const Options&);
  static Tensor define(const Tensor& x, const Options&);
  static Tensor forward(Context&, const Tensor& x, const Options&);
  static Tensor backward(Context&, const Tensor& dy);
};

}  // namespace norma
