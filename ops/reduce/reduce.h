#pragma once

#include "norma/core/op.h"
#include "norma/core/tensor.h"

namespace norma {

// Reductions over some dimensions of x, or over all of them; x has any strides. A reduced dimension
// goes, or stays with size 1 under `keepdim`. The order of a sum follows from x's sizes alone:
// leaves of 256 consecutive elements, added pairwise, so that the error grows as log n (Higham
// 1993, doi:10.1137/0914050) and any thread count gives the same bits.

struct ReduceOptions {
  Shape dims = {};  ///< which dimensions go, each once, counted from the front
  KeepDim keep = KeepDim::no;
  bool operator==(const ReduceOptions&) const = default;
};

/// Σ x. In x's dtype; int32 and bool give int64.
Tensor sum(const Tensor& x, const std::vector<int>& dims, KeepDim keep = KeepDim::no);
/// Σ x / n; NaN for n = 0. Floating.
Tensor mean(const Tensor& x, const std::vector<int>& dims, KeepDim keep = KeepDim::no);
/// The largest, NaN if one is NaN; equal ones share the gradient evenly. ValueError for no
/// elements.
Tensor max(const Tensor& x, const std::vector<int>& dims, KeepDim keep = KeepDim::no);
/// mean((x − mean(x))²): the biased variance, as norms use it. Floating.
Tensor var(const Tensor& x, const std::vector<int>& dims, KeepDim keep = KeepDim::no);
/// √Σx² over everything; its gradient at x = 0 is 0. Floating.
Tensor norm(const Tensor& x);
/// The first index of the largest along `dim`, NaN counted as largest: int64, no gradient.
Tensor argmax(const Tensor& x, int dim);
/// y_i = x_0 + … + x_i along `dim`; floating or int64.
Tensor cumsum(const Tensor& x, int dim);

struct Sum {
  using Options = ReduceOptions;
  static constexpr std::string_view name = "sum";
  static Tensor forward(Context&, const Tensor& x, const Options&);
  static Tensor backward(Context&, const Tensor& dy);
};
struct Mean {
  using Options = ReduceOptions;
  static constexpr std::string_view name = "mean";
  static Tensor define(const Tensor& x, const Options&);
  static Tensor forward(Context&, const Tensor& x, const Options&);
  static Tensor backward(Context&, const Tensor& dy);
};
struct Max {
  using Options = ReduceOptions;
  static constexpr std::string_view name = "max";
  static Tensor forward(Context&, const Tensor& x, const Options&);
  static Tensor backward(Context&, const Tensor& dy);
};
struct EuclideanNorm {
  static constexpr std::string_view name = "norm";
  static Tensor forward(Context&, const Tensor& x);
  static Tensor backward(Context&, const Tensor& dy);
};
struct CumsumOptions {
  int dim = 0;
  bool reverse = false;
  bool operator==(const CumsumOptions&) const = default;
};
struct Cumsum {
  using Options = CumsumOptions;
  static constexpr std::string_view name = "cumsum";
  static Tensor forward(Context&, const Tensor& x, const Options&);
  static Tensor backward(Context&, const Tensor& dy);
};

}  // namespace norma
