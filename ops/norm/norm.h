#pragma once

#include "norma/core/op.h"
#include "norma/core/tensor.h"
#include "norma/ops/norm/options.h"

namespace norma {

struct NormResult {
  Tensor y;
  std::optional<Tensor> y2;  ///< of the second weight
  std::optional<Tensor> h;   ///< what is normalized, where it is not x itself or passes_x asks for
                             ///< it: the new residual
  /// (…, groups), float32, or float64 for float64; means of layer alone. mean is the float nearest
  /// to the mean, mean_rest what its rounding left over: x̂ = ((u − mean) − mean_rest) · rstd keeps
  /// x̂ exact where the mean is a million deviations.
  Constant mean, mean_rest, rstd;
};

/// What a backward saw of each row and group, (…, groups), float32 (float64 for float64): how much
/// gradient the norm takes away. Give its address as options.probe.
struct NormProbe {
  Tensor mean, rstd;
  Tensor mean_gx;  ///< mean(g ⊙ x̂), for l2 Σ g ⊙ x̂: the part of g along x̂, which goes
  Tensor g_norm;   ///< ‖g‖, before the norm's Jacobian
  Tensor du_norm;  ///< ‖du‖, after it: ‖dx‖ of a norm without gate and residual
};

/// The whole family, over the last dimension of x, of length D, in groups of G:
///   h = x ⊙ dropout mask / (1 − p) · row_scale + residual, rounded to h_dtype; absent parts are
///       left out, and h = x where all are
///   u = h, or h ⊙ s(z) where the gate comes first
///   c = u − mean(u) for layer (Ba, Kiros & Hinton 2016, arXiv:1607.06450), u for rms (Zhang &
///       Sennrich 2019, arXiv:1910.07467) and l2
///   rstd = 1/√(mean(c²) + eps), for l2 1/√(Σ c² + eps);  x̂ = c · rstd (rounded to x's dtype by
///       Casting::rounded)
///   n = w ⊙ x̂ + b;  y = n, or n ⊙ s(z) where the gate comes last
///   y2 = w2 ⊙ x̂ + b2, for two branches that read one normalization
/// Gradients, means over the group (sums for l2):
///   dn = dy, or dy ⊙ s(z) where the gate comes last;  g = w ⊙ dn + w2 ⊙ dy2
///   du = rstd · (g − x̂ · mean(g ⊙ x̂)), less rstd · mean(g) for layer
///   dw = Σ_rows dn ⊙ x̂,  db = Σ_rows dn;  dw2, db2 the same of dy2
///   gate last: dz = dy ⊙ n ⊙ s′(z);  gate first: dz = du ⊙ h ⊙ s′(z), dh = du ⊙ s(z)
///   dresidual = dh + the gradient of the returned h, in the residual's dtype
///   dx = dresidual ⊙ mask / (1 − p) · row_scale;  drow_scale = Σ_c dresidual ⊙ x ⊙ mask / (1 − p)
/// x (…, D): any floating dtype, any strides, also no rows. z like x; residual like x or in its
/// statistics' dtype, and h keeps that. row_scale (…): one number a row, of any floating dtype. w,
/// b, w2 and b2: none, or all of length D or all of length G, which every group then shares; of any
/// floating dtype. Statistics in float32 (float64 for float64), of the stored h: the backward is
/// the derivative of the forward that ran. A row's y, dx and dz depend on that row alone; sums have
/// an order that follows from G alone, the weights' gradients' from the sizes.
/// s(−∞) is NaN, as the formula z σ(z) is. Throws ShapeError, DTypeError or ValueError where
/// arguments do not fit.
struct Norm {
  using Options = NormOptions;
  static constexpr std::string_view name = "norm";
  static TensorSpec check(const Tensor& x, const std::optional<Tensor>& w,
                          const std::optional<Tensor>& b, const std::optional<Tensor>& z,
                          const std::optional<Tensor>& residual,
                          const std::optional<Tensor>& row_scale, const std::optional<Tensor>& w2,
                          const std::optional<Tensor>& b2, const Options&);
  static NormResult define(const Tensor& x, const std::optional<Tensor>& w,
                           const std::optional<Tensor>& b, const std::optional<Tensor>& z,
                           const std::optional<Tensor>& residual,
                           const std::optional<Tensor>& row_scale, const std::optional<Tensor>& w2,
                           const std::optional<Tensor>& b2, const Options&);
  static NormResult forward(Context&, const Tensor& x, const std::optional<Tensor>& w,
                            const std::optional<Tensor>& b, const std::optional<Tensor>& z,
                            const std::optional<Tensor>& residual,
                            const std::optional<Tensor>& row_scale, const std::optional<Tensor>& w2,
                            const std::optional<Tensor>& b2, const Options&);
  static std::vector<Tensor> backward(Context&, const std::optional<Tensor>& dy,
                                      const std::optional<Tensor>& dy2,
                                      const std::optional<Tensor>& dh,
                                      const std::optional<Tensor>& dmean,
                                      const std::optional<Tensor>& dmean_rest,
                                      const std::optional<Tensor>& drstd);
};

/// The dtype of each gradient; absent where nobody wants it. dresidual is wanted by itself only
/// where it differs from dx.
struct NormBackwardOptions {
  NormOptions norm;
  DType x_dtype = float32;  ///< for Casting::rounded
  std::optional<DType> dx = none, dresidual = none, dw = none, db = none, dz = none,
                       drow_scale = none, dw2 = none, db2 = none;
  bool saved = false;  ///< all but dy, dy2 and dh comes from what a node of this sweep saved
  bool operator==(const NormBackwardOptions&) const = default;
};
struct NormGrads {
  std::optional<Tensor> dx, dresidual, dw, db, dz, drow_scale, dw2, db2;
};
/// The gradient is an op too: a formula to read, a kernel to run, derivatives of its own. mean,
/// mean_rest and rstd are hints for the kernel; the formula finds them anew, since they depend on
/// h. Where x̂ was saved in place of h, the formula takes it and rstd as they are.
struct NormBackward {
  using Options = NormBackwardOptions;
  static constexpr std::string_view name = "norm_backward";
  static NormGrads define(const Tensor& dy, const std::optional<Tensor>& dy2,
                          const std::optional<Tensor>& dh, const std::optional<Tensor>& h,
                          const std::optional<Tensor>& x_hat, const std::optional<Tensor>& x,
                          const std::optional<Tensor>& z, const std::optional<Tensor>& row_scale,
                          const std::optional<Tensor>& w, const std::optional<Tensor>& b,
                          const std::optional<Tensor>& w2, const std::optional<Tensor>& mean,
                          const std::optional<Tensor>& mean_rest, const Tensor& rstd,
                          const Options&);
  static NormGrads forward(Context&, const Tensor& dy, const std::optional<Tensor>& dy2,
                           const std::optional<Tensor>& dh, const std::optional<Tensor>& h,
                           const std::optional<Tensor>& x_hat, const std::optional<Tensor>& x,
                           const std::optional<Tensor>& z, const std::optional<Tensor>& row_scale,
                           const std::optional<Tensor>& w, const std::optional<Tensor>& b,
                           const std::optional<Tensor>& w2, const std::optional<Tensor>& mean,
                           const std::optional<Tensor>& mean_rest, const Tensor& rstd,
                           const Options&);
};

struct NormInputs {
  std::optional<Tensor> w = none, b = none, z = none, residual = none, row_scale = none, w2 = none,
                        b2 = none;
};
/// Any member of the family by name: fused_norm(x, {.w = w, .residual = r}, {.dropout = 0.1}). See
/// Norm. Dropout draws its mask's key from the ambient generator where options name none.
NormResult fused_norm(const Tensor& x, const NormInputs& inputs = {}, NormOptions options = {});

}  // namespace norma
