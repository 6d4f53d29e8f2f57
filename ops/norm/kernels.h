#pragma once

#include "norma/core/device.h"
#include "norma/core/view.h"
#include "norma/ops/norm/norm.h"

namespace norma {

/// An absent view is no tensor: no weight, no residual, nobody wants that result.
struct NormForwardArgs {
  NormOptions options;
  ConstRows x, residual, z;
  ConstVec w, b;
  Rows h, y;
  Vec mean, rstd;
};
void run(Cpu, const NormForwardArgs&);
void run(Cuda, const NormForwardArgs&);

struct NormBackwardArgs {
  NormOptions options;
  ConstRows dy, h, z;
  ConstVec w, b, mean, rstd;
  ConstRows dh;  ///< the gradient of the returned h, added to dx
  Rows dx, dz;
  Vec dw, db;
};
void run(Cpu, const NormBackwardArgs&);
void run(Cuda, const NormBackwardArgs&);

}  // namespace norma
