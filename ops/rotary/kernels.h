#pragma once

#include "norma/core/device.h"
#include "norma/core/view.h"

namespace norma {

/// x and y (…, T, D); cos and sin (T, D/2) in float32, or float64 for float64; y dense. halves:
/// i and i + D/2 turn together, else neighbours.
struct RotaryArgs {
  ConstView x;
  ConstRows cos, sin;
  bool halves;
  View y;
};
void run(Cpu, const RotaryArgs&);
void run(Cuda, const RotaryArgs&);

}  // namespace norma
