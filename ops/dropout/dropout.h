#pragma once

#include "norma/core/op.h"
#include "norma/core/random.h"
#include "norma/core/tensor.h"

namespace norma {

/// y = x ⊙ m / (1 − p), m 0 with probability p (Srivastava et al. 2014, JMLR 15:1929). The mask is
/// drawn from the ambient generator, is never stored, and is drawn alike on every device; gradient
/// dy ⊙ m / (1 − p). p = 0 gives x itself. x floating. Throws ValueError unless 0 ≤ p < 1.
Tensor dropout(const Tensor& x, double p);

struct DropoutOptions {
  double p = 0;
  RandomKey key = {};
  bool operator==(const DropoutOptions&) const = default;
};
struct Dropout {
  using Options = DropoutOptions;
  static constexpr std::string_view name = "dropout";
  static Tensor forward(Context&, const Tensor& x, const Options&);
  static Tensor backward(Context&, const Tensor& dy);
};

}  // namespace norma
