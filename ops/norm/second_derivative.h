#pragma once

#include "norma/ops/norm/norm.h"

namespace norma {

/// NormBackward of a member without gate, dropout, row scale and second weight: its own derivative
/// has a closed form and a kernel, so that gradient penalties and Hessian-vector products run at
/// the speed of a norm. The other members' second derivative goes through NormBackward::define.
struct PlainNormBackward {
  using Options = NormBackwardOptions;
  static constexpr std::string_view name = "norm_backward";
  static NormGrads define(const Tensor& dy, const std::optional<Tensor>& dh, const Tensor& h,
                          const std::optional<Tensor>& w, const std::optional<Tensor>& b,
                          const std::optional<Tensor>& mean, const std::optional<Tensor>& mean_rest,
                          const Tensor& rstd, const Options&);
  static NormGrads forward(Context&, const Tensor& dy, const std::optional<Tensor>& dh,
                           const Tensor& h, const std::optional<Tensor>& w,
                           const std::optional<Tensor>& b, const std::optional<Tensor>& mean,
                           const std::optional<Tensor>& mean_rest, const Tensor& rstd,
                           const Options&);
  static std::vector<Tensor> backward(
      Context&, const std::optional<Tensor>& of_dx, const std::optional<Tensor>& of_dresidual,
      const std::optional<Tensor>& of_dw, const std::optional<Tensor>& of_db,
      const std::optional<Tensor>& of_dz, const std::optional<Tensor>& of_drow_scale,
      const std::optional<Tensor>& of_dw2, const std::optional<Tensor>& of_db2);
};
bool has_fused_second_derivative(const NormOptions& options,
                                 const std::optional<Tensor>& row_scale);

struct NormSecondOptions {
  NormOptions norm;
  std::optional<DType> dy = none, h = none, w = none;  ///< of the gradients that somebody wants
  bool operator==(const NormSecondOptions&) const = default;
};
/// The loss's gradients in dy, h and w, where the loss depends on dx, dw and db.
struct NormSecondGrads {
  std::optional<Tensor> dy, h, w;
};
/// With v, vw and vb the loss's gradients in dx, dw and db, means over the group (sums for l2,
/// where D is 1), s_v = mean(v ⊙ x̂), s_g = mean(g ⊙ x̂) and J = ∂x̂/∂h, which is symmetric:
///   of dy  w ⊙ Jv + vw ⊙ x̂ + vb
///   of w   Σ_rows dy ⊙ Jv
///   of h   J(vw ⊙ dy) − rstd · (s_g · Jv + s_v · Jg) − x̂ · rstd/D · vᵀJg
/// An absent v is 0, as are absent vw and vb.
struct NormSecond {
  using Options = NormSecondOptions;
  static constexpr std::string_view name = "norm_second";
  static NormSecondGrads define(const Tensor& dy, const Tensor& h, const std::optional<Tensor>& w,
                                const std::optional<Tensor>& mean,
                                const std::optional<Tensor>& mean_rest, const Tensor& rstd,
                                const std::optional<Tensor>& v, const std::optional<Tensor>& vw,
                                const std::optional<Tensor>& vb, const Options&);
  static NormSecondGrads forward(Context&, const Tensor& dy, const Tensor& h,
                                 const std::optional<Tensor>& w, const std::optional<Tensor>& mean,
                                 const std::optional<Tensor>& mean_rest, const Tensor& rstd,
                                 const std::optional<Tensor>& v, const std::optional<Tensor>& vw,
                                 const std::optional<Tensor>& vb, const Options&);
};

}  // namespace norma
