#pragma once

#include "norma/core/op.h"
#include "norma/core/tensor.h"

namespace norma {

// Norms that are no more than their definition: what the rule "a definition is enough" gives. Their
// primitives are recorded, and derivatives of any order follow. x is (N, C, …), floating; w and b
// (C,) of x's dtype, or none. ShapeError where sizes do not fit.

struct BatchNormOptions {
  double eps = 1e-5;
  bool operator==(const BatchNormOptions&) const = default;
};
struct BatchNormResult {
  Tensor y;
  Constant mean, var;  ///< (C,): for running statistics
};
/// x̂ with mean and variance over everything but C (Ioffe & Szegedy 2015, arXiv:1502.03167): the
/// norm whose rows see each other.
struct BatchNorm {
  using Options = BatchNormOptions;
  static constexpr std::string_view name = "batch_norm";
  static BatchNormResult define(const Tensor& x, const std::optional<Tensor>& w,
                                const std::optional<Tensor>& b, const Options&);
};

struct GroupNormOptions {
  int64_t groups = 1;  ///< must divide C
  double eps = 1e-5;
  bool operator==(const GroupNormOptions&) const = default;
};
/// x̂ with mean and variance over C/groups channels and all places of one sample (Wu & He 2018,
/// arXiv:1803.08494).
struct GroupNorm {
  using Options = GroupNormOptions;
  static constexpr std::string_view name = "group_norm";
  static Tensor define(const Tensor& x, const std::optional<Tensor>& w,
                       const std::optional<Tensor>& b, const Options&);
};
/// A group a channel (Ulyanov et al. 2016, arXiv:1607.08022).
struct InstanceNorm {
  using Options = BatchNormOptions;
  static constexpr std::string_view name = "instance_norm";
  static Tensor define(const Tensor& x, const std::optional<Tensor>& w,
                       const std::optional<Tensor>& b, const Options&);
};
/// The rows of a matrix with lengths of their own: w = g v / ‖v‖ for v (rows, cols), g (rows,)
/// (Salimans & Kingma 2016, arXiv:1602.07868).
struct WeightNorm {
  static constexpr std::string_view name = "weight_norm";
  static Tensor define(const Tensor& v, const Tensor& g);
};

Tensor batch_norm(const Tensor& x, const std::optional<Tensor>& w = none,
                  const std::optional<Tensor>& b = none, const BatchNormOptions& options = {});
Tensor group_norm(const Tensor& x, const std::optional<Tensor>& w = none,
                  const std::optional<Tensor>& b = none, const GroupNormOptions& options = {});
Tensor instance_norm(const Tensor& x, const std::optional<Tensor>& w = none,
                     const std::optional<Tensor>& b = none, const BatchNormOptions& options = {});
Tensor weight_norm(const Tensor& v, const Tensor& g);

}  // namespace norma
