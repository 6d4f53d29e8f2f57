#pragma once

#include "norma/core/tensor.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/unary.h"

namespace norma::detail {

// How the scan and SSD take a, which may come as log(−a), Mamba's parameter.

inline Tensor rates_of(const Tensor& a, DType dtype, bool log_a) {
  return log_a ? neg_exp(a.to(dtype)) : a.to(dtype);
}
/// Whether the kernels of x's device take log(−a) as it is and give its gradient. A GPU's do: a
/// step has one launch less, and its backward another.
inline bool takes_log(const Tensor& x, bool log_a) { return log_a && x.device().is_cuda(); }
/// a as those kernels take it.
inline Tensor kernel_rates(const Tensor& a, const Tensor& x, DType stats, bool log_a) {
  return dense(takes_log(x, log_a) ? a.to(stats) : rates_of(a, stats, log_a));
}
/// The gradient of what was given, where kernels gave da for `rates`.
inline Tensor rates_gradient(const Tensor& da, const Tensor& rates, const Tensor& x, bool log_a) {
  return log_a && !takes_log(x, log_a) ? da * rates : da;
}

}  // namespace norma::detail
