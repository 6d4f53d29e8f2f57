#pragma once

#include "norma/core/device.h"
#include "norma/core/view.h"

namespace norma {

// x, dy (B, T, H, P), dt (B, T, H), b, c (B, T, G, N) have one dtype and are dense beyond T: any
// strides for B and T. a, dt_bias (H), d (H, P), state, last_state and their gradients (B, H, P, N)
// are dense and in float32, or float64 for float64. Absent tensors are null views. Only a GPU's
// kernels know log_a, with which a is log(−a) and da its gradient, and take d (H) for (H, P).

struct SsdForwardArgs {
  bool dt_softplus, log_a;
  double dt_min, dt_max;
  int64_t chunk;  // 0: the kernel's own
  ConstView x, dt, b, c;
  ConstVec a, d, dt_bias, state;
  View y;
  Vec last_state;
};
void run(Cpu, const SsdForwardArgs&);
/// On a GPU: not float64, P = 64, N = 64 or 128, rows aligned to 16 bytes.
void run(Cuda, const SsdForwardArgs&);

/// dx, ddt, db, dc like x, dt, b, c; da, ddt_bias (H), dd like d.
struct SsdBackwardArgs {
  bool dt_softplus, log_a;
  double dt_min, dt_max;
  int64_t chunk;
  ConstView dy, x, dt, b, c;
  ConstVec a, d, dt_bias, state, dlast_state;
  View dx, ddt, db, dc;
  Vec da, dd, ddt_bias, dstate;
};
void run(Cpu, const SsdBackwardArgs&);
void run(Cuda, const SsdBackwardArgs&);

}  // namespace norma
