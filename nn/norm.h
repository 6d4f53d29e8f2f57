#pragma once

#include "norma/nn/module.h"
#include "norma/nn/residual.h"

namespace norma::nn {

/// What a norm is asked for: its kind by name and the width it works on.
struct NormSpec {
  std::string kind = "rms";  ///< rms, layer, none, or a registered name
  int64_t dim = 0;
  double eps = 0;     ///< 0: the kind's own, 1e-6 for rms, 1e-5 for layer
  bool bias = false;  ///< layer alone
};

/// A norm of any kind: what register_norm's factories make.
class NormModule {
 public:
  virtual ~NormModule() = default;
  virtual Tensor forward(const Tensor& x) const = 0;
  /// h = x + residual and the norm of h; fused where a kind can.
  struct Sum {
    Tensor y, h;
  };
  virtual Sum add_forward(const Tensor& x, const Tensor& residual) const;
  /// The norm of h = x, and h to go on with: its gradient is added in one pass where a kind can.
  virtual Sum pass_forward(const Tensor& x) const { return {forward(x), x}; }
  virtual void visit(Visitor&) {}
};
using NormFactory = std::function<std::unique_ptr<NormModule>(const NormSpec&)>;

/// Adds a kind of norm, before other threads make any. ValueError where the name is taken.
void register_norm(std::string kind, NormFactory factory);
std::vector<std::string> norm_kinds();  ///< in alphabetic order

/// A norm by name. ValueError for an unknown kind, naming those there are.
struct Norm {
  explicit Norm(const NormSpec& norm_spec);
  Tensor operator()(const Tensor& x) const { return module->forward(x); }
  /// The norm of the stream; a pending branch is added on the way, in one pass.
  Tensor operator()(Stream& stream) const;
  void visit(Visitor& v) { module->visit(v); }

  NormSpec spec;
  std::unique_ptr<NormModule> module;
};

}  // namespace norma::nn
