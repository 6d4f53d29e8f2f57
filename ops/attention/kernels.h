#pragma once

#include "norma/core/device.h"
#include "norma/core/view.h"

namespace norma {

/// Every view (B, H, length, D) with a last stride of 1, float32 or float64; lse dense (B, H, T).
struct AttentionForwardArgs {
  bool causal;
  double scale;
  ConstView q, k, v;
  View y, lse;
};
void run(Cpu, const AttentionForwardArgs&);
void run(Cuda, const AttentionForwardArgs&);

struct AttentionBackwardArgs {
  bool causal;
  double scale;
  ConstView dy, q, k, v, y, lse;
  View dq, dk, dv;
};
void run(Cpu, const AttentionBackwardArgs&);
void run(Cuda, const AttentionBackwardArgs&);

}  // namespace norma
