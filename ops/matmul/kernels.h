#pragma once

#include "norma/core/device.h"
#include "norma/core/view.h"

namespace norma {

/// c = a b for each index of the leading dimensions, in which a and b have stride 0 where they
/// broadcast; a (…, n, k), b (…, k, m), c (…, n, m) dense; of a and b one of the last two strides
/// is
/// 1. With a bias (m) it is added to every row. float32 or float64.
struct MatmulArgs {
  ConstView a, b;
  ConstVec bias;
  View c;
};
void run(Cpu, const MatmulArgs&);
void run(Cuda, const MatmulArgs&);

}  // namespace norma
