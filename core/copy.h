#pragma once

#include "norma/core/device.h"
#include "norma/core/view.h"

namespace norma {

// The four kernels that core needs itself; everything else is an op.

/// target = value, converted to the target's dtype.
struct FillArgs {
  View target;
  double value;
};
/// target = source, converted; shapes equal, any strides. Floating to integer truncates towards
/// zero; anything to bool is `!= 0`.
struct CopyArgs {
  ConstView source;
  View target;
};
/// target += source; shapes and dtypes equal, any strides.
struct AddIntoArgs {
  ConstView source;
  View target;
};
/// target[i] = first + step · i, rounded once in double, then converted; one dense dimension.
struct RampArgs {
  View target;
  double first, step;
};

void run(Cpu, const FillArgs&);
void run(Cuda, const FillArgs&);
void run(Cpu, const CopyArgs&);
void run(Cuda, const CopyArgs&);
void run(Cpu, const AddIntoArgs&);
void run(Cuda, const AddIntoArgs&);
void run(Cpu, const RampArgs&);
void run(Cuda, const RampArgs&);

}  // namespace norma
