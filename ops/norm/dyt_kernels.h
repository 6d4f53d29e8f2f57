#pragma once

#include "norma/core/device.h"
#include "norma/core/view.h"
#include "norma/ops/norm/dyt.h"

namespace norma {

/// An absent view is no tensor. x, y, dy and dx of one dtype, the others of any floating one.
struct SquashForwardArgs {
  SquashFunction function;
  ConstRows x;
  ConstVec alpha, shift;  ///< one element each
  ConstVec w, b;
  Rows y;
};
void run(Cpu, const SquashForwardArgs&);
void run(Cuda, const SquashForwardArgs&);

struct SquashBackwardArgs {
  SquashFunction function;
  ConstRows dy, x;
  ConstVec alpha, shift, w;
  Rows dx;
  Vec dalpha, dshift, dw, db;
};
void run(Cpu, const SquashBackwardArgs&);
void run(Cuda, const SquashBackwardArgs&);

}  // namespace norma
