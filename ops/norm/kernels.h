#pragma once

#include "norma/core/device.h"
#include "norma/core/view.h"
#include "norma/ops/norm/options.h"

namespace norma {

// An absent view is no tensor: no weight, no residual, nobody wants that result. T is x's dtype,
// Acc its statistics' (float32, float64 for float64). Views say their dtype; what is not fixed here
// is a branch equal for all threads.

/// s = x · dropout · row_scale + residual, h = s rounded to h's dtype; u, x̂, y as in Norm.
struct NormForwardArgs {
  NormOptions options;
  ConstRows x, z;         ///< T
  ConstRows residual;     ///< T or Acc
  ConstVec row_scale;     ///< one a row, any floating dtype
  ConstVec w, b, w2, b2;  ///< of one length n, D or a group's: element c % n; any floating dtype
  Rows h;                 ///< T or Acc; absent where h is x itself
  Rows y, y2;             ///< any floating dtype, the same
  Rows x_hat;             ///< T, where the backward is to start from it
  Vec mean, mean_rest;  ///< Acc, rows × groups, of layer: x̂ = ((u − mean) − mean_rest) · rstd
  Vec rstd;             ///< Acc, rows × groups
};
void run(Cpu, const NormForwardArgs&);
void run(Cuda, const NormForwardArgs&);

/// dn = dy ⊙ s(z) or dy, g = w ⊙ dn + w2 ⊙ dy2, du from g and x̂ as in Norm,
/// dh_total = du (⊙ s(z) where the gate comes first) + dh.
struct NormBackwardArgs {
  NormOptions options;
  DType x_dtype = float32;         ///< T where casting is rounded, else not needed
  ConstRows dy, dy2;               ///< y's dtype; dy2 may be absent beside dy
  ConstRows dh;                    ///< h's dtype: the gradient of the returned h
  ConstRows h;                     ///< T or Acc; or else
  ConstRows x_hat;                 ///< T, options.saves = x_hat; never where the gate comes first
  ConstRows x;                     ///< T, where drow_scale is wanted
  ConstRows z;                     ///< T
  ConstVec row_scale;              ///< any floating dtype
  ConstVec w, b, w2;               ///< as in the forward; b for dz of norm_then_gate alone
  ConstVec mean, mean_rest, rstd;  ///< Acc, as the forward wrote them
  Rows dx;                         ///< T: dh_total · dropout · row_scale
  Rows dresidual;                  ///< T or Acc: dh_total, where it differs from dx
  Rows dz;                         ///< T
  Vec dw, db, dw2, db2;            ///< the weights' lengths, any floating dtype
  Vec drow_scale;                  ///< Σ_c dh_total · x · dropout
  Vec mean_gx, g_norm, du_norm;    ///< Acc, rows × groups: NormProbe's
  bool settled = false;  ///< all but dy, dy2 and dh was made before the sweep (core/cuda/early.h)
};
void run(Cpu, const NormBackwardArgs&);
void run(Cuda, const NormBackwardArgs&);

/// The derivative of a plain NormBackward; formulas in second_derivative.h.
struct NormSecondArgs {
  NormOptions options;
  ConstRows dy;                    ///< any floating dtype
  ConstRows h, v;                  ///< T or Acc, each; an absent v is 0
  ConstVec w;                      ///< D or a group's
  ConstVec mean, mean_rest, rstd;  ///< Acc
  ConstVec vw, vb;                 ///< as long as w; absent: 0
  Rows of_dy, of_h;
  Vec of_w;
};
void run(Cpu, const NormSecondArgs&);
void run(Cuda, const NormSecondArgs&);

}  // namespace norma
