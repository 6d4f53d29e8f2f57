#pragma once

#include "norma/core/device.h"
#include "norma/core/philox.h"
#include "norma/core/view.h"

namespace norma {

/// y = x / (1 − p) where the uniform of its element is at least p, else 0; both dense.
struct DropoutArgs {
  double p;
  RandomKey key;
  ConstVec x;
  Vec y;
};
void run(Cpu, const DropoutArgs&);
void run(Cuda, const DropoutArgs&);

}  // namespace norma
