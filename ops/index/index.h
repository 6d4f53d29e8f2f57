#pragma once

#include "norma/core/op.h"
#include "norma/core/tensor.h"

namespace norma {

// Indices are int32 or int64, have no gradient, and must lie within the dimension: ValueError.

/// y[…, i, …] = x[…, index[…, i, …], …] along `dim`; index has x's other sizes. Any dtype.
Tensor gather(const Tensor& x, int dim, const Tensor& index);
/// x with src added where index says: y[…, index[…, i, …], …] += src[…, i, …], in the order of i,
/// so that sums have the same bits on any number of threads. Gradients dy, and gather(dy).
Tensor scatter_add(const Tensor& x, int dim, const Tensor& index, const Tensor& src);

struct TopK {
  Tensor values;   ///< (…, k), largest first, NaN counted as largest; differentiable
  Tensor indices;  ///< (…, k) int64, the first of equals first
};
/// The k largest along the last dimension. ValueError where there are fewer.
TopK topk(const Tensor& x, int64_t k);

struct IndexOptions {
  int64_t size = 0;  ///< of the last dimension of the result, for scattering
  bool operator==(const IndexOptions&) const = default;
};
/// Along the last dimension.
struct Gather {
  static constexpr std::string_view name = "gather";
  static void check(const Tensor& x, const Tensor& index);
  static Tensor forward(Context&, const Tensor& x, const Tensor& index);
  static Tensor backward(Context&, const Tensor& dy);
};
/// Zeros of `size` columns with src added at index: Gather's transpose.
struct Scatter {
  using Options = IndexOptions;
  static constexpr std::string_view name = "scatter";
  static void check(const Tensor& src, const Tensor& index, const Options&);
  static Tensor forward(Context&, const Tensor& src, const Tensor& index, const Options&);
  static Tensor backward(Context&, const Tensor& dy);
};

}  // namespace norma
