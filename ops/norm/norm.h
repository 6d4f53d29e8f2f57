#pragma once

#include "norma/core/op.h"
#include "norma/core/tensor.h"

namespace norma {

enum class NormKind { rms, layer };
/// Where a gate z stands: norm(x) ⊙ silu(z), norm(x ⊙ silu(z)), or nowhere.
enum class GateOrder { no_gate, norm_then_gate, gate_then_norm };
/// How LayerNorm finds its variance; both keep the statistics exact under a large mean.
///   two_pass  mean((u − mean)²) less the square of what the mean's own rounding left over
///   welford   one pass of running means (Welford 1962, doi:10.1080/00401706.1962.10490022) in 32
///             lanes, merged pairwise (Chan, Golub & LeVeque 1983,
///             doi:10.1080/00031305.1983.10483115)
enum class Variance { two_pass, welford };

struct NormOptions {
  NormKind kind = NormKind::rms;
  GateOrder gate = GateOrder::no_gate;
  double eps = 1e-6;           ///< inside the root
  int64_t group = 0;           ///< elements that share statistics; must divide D; 0: all D
  bool zero_centered = false;  ///< the weight is stored less 1
  Variance variance = Variance::two_pass;
  bool operator==(const NormOptions&) const = default;
};

struct NormResult {
  Tensor y;
  std::optional<Tensor> h;  ///< x + residual, where there is one
  Constant mean, rstd;      ///< (…, groups), float32, or float64 for float64; mean of layer alone
};

/// The whole family, over the last dimension of x, of length D, in groups of G:
///   h = x + residual (rounded to x's dtype; without a residual h = x)
///   u = h, or h ⊙ silu(z) where the gate comes first
///   c = u − mean(u) for layer (Ba, Kiros & Hinton 2016, arXiv:1607.06450), u for rms (Zhang &
///       Sennrich 2019, arXiv:1910.07467)
///   rstd = 1/√(mean(c²) + eps),  x̂ = c · rstd,  n = w ⊙ x̂ + b
///   y = n, or n ⊙ silu(z) where the gate comes last
/// Gradients, means over the group:
///   dn = dy, or dy ⊙ silu(z) where the gate comes last;  g = w ⊙ dn
///   du = rstd · (g − x̂ · mean(g ⊙ x̂)), less rstd · mean(g) for layer
///   dw = Σ_rows dn ⊙ x̂,  db = Σ_rows dn
///   gate last: dz = dy ⊙ n ⊙ silu′(z);  gate first: dz = du ⊙ h ⊙ silu′(z), dh = du ⊙ silu(z)
///   dx = dresidual = dh + the gradient of the returned h
/// x (…, D): any floating dtype, any strides, also no rows. residual and z like x. w and b (D,), of
/// any floating dtype, or none. Statistics in float32 (float64 for float64). A row's y and dx
/// depend on that row alone; sums have an order that follows from G alone, dw and db's from the
/// sizes. Throws ShapeError, DTypeError or ValueError where arguments do not fit.
struct Norm {
  using Options = NormOptions;
  static constexpr std::string_view name = "norm";
  static TensorSpec check(const Tensor& x, const std::optional<Tensor>& w,
                          const std::optional<Tensor>& b, const std::optional<Tensor>& z,
                          const std::optional<Tensor>& residual, const Options&);
  static NormResult define(const Tensor& x, const std::optional<Tensor>& w,
                           const std::optional<Tensor>& b, const std::optional<Tensor>& z,
                           const std::optional<Tensor>& residual, const Options&);
  static NormResult forward(Context&, const Tensor& x, const std::optional<Tensor>& w,
                            const std::optional<Tensor>& b, const std::optional<Tensor>& z,
                            const std::optional<Tensor>& residual, const Options&);
  static std::vector<Tensor> backward(Context&, const std::optional<Tensor>& dy,
                                      const std::optional<Tensor>& dh,
                                      const std::optional<Tensor>& dmean,
                                      const std::optional<Tensor>& drstd);
};

struct NormGrads {
  Tensor dx;
  std::optional<Tensor> dw, db, dz;
};
/// The gradient is an op too: a formula to read, a kernel to run, derivatives of its own. mean and
/// rstd are hints for the kernel; the formula finds them anew, since they depend on h.
struct NormBackward {
  using Options = NormOptions;
  static constexpr std::string_view name = "norm_backward";
  static NormGrads define(const Tensor& dy, const Tensor& h, const std::optional<Tensor>& w,
                          const std::optional<Tensor>& b, const std::optional<Tensor>& z,
                          const std::optional<Tensor>& mean, const Tensor& rstd,
                          const std::optional<Tensor>& dh, const Options&);
  static NormGrads forward(Context&, const Tensor& dy, const Tensor& h,
                           const std::optional<Tensor>& w, const std::optional<Tensor>& b,
                           const std::optional<Tensor>& z, const std::optional<Tensor>& mean,
                           const Tensor& rstd, const std::optional<Tensor>& dh, const Options&);
};

}  // namespace norma
