#pragma once

#include "norma/core/device.h"
#include "norma/core/view.h"

namespace norma {

enum class Reduction { sum, max };
/// y[kept] = Σ x[kept, reduced] / divisor, or the largest. x's dimensions are ordered kept first.
/// Sums are in float32 for the half types, in 64 bits for integers.
struct ReduceArgs {
  Reduction reduction;
  ConstView x;
  int kept = 0;  ///< how many of x's dimensions are kept
  double divisor = 1;
  View y;  ///< dense
};
void run(Cpu, const ReduceArgs&);
void run(Cuda, const ReduceArgs&);

/// The first index of the largest along the last dimension, NaN counted as largest.
struct ArgmaxArgs {
  ConstView x;
  View y;  ///< dense int64
};
void run(Cpu, const ArgmaxArgs&);
void run(Cuda, const ArgmaxArgs&);

/// Running sums along the last dimension, from the end where `reverse`.
struct CumsumArgs {
  ConstView x;
  View y;  ///< any strides
  bool reverse = false;
};
void run(Cpu, const CumsumArgs&);
void run(Cuda, const CumsumArgs&);

}  // namespace norma
