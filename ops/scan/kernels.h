#pragma once

#include "norma/core/device.h"
#include "norma/core/view.h"

namespace norma {

// x, dt, z, b, c, dy (B, T, ·) have one dtype and a last stride of 1. a (E, N), d, dt_bias (E),
// state, last_state and their gradients (B, E, N) are dense and in float32, or float64 for float64,
// and so is chunk_states (B, chunks, N, E): the state before steps 0, chunk, 2 chunk, … Absent
// tensors are null views. With `log_a`, which only a GPU's kernels know, a is log(−a) and da its
// gradient.

struct ScanForwardArgs {
  bool dt_softplus, log_a;
  int64_t chunk;
  ConstView x, dt, a, b, c, z;
  ConstVec d, dt_bias, state;
  View y;
  Vec last_state, chunk_states;
};
void run(Cpu, const ScanForwardArgs&);
void run(Cuda, const ScanForwardArgs&);

/// dx, ddt, dz like x; db, dc like b, dense, or on a GPU of rows evenly apart; da (E, N), dd,
/// ddt_bias (E).
struct ScanBackwardArgs {
  bool dt_softplus, log_a;
  int64_t chunk;
  ConstView dy, x, dt, a, b, c, z;
  ConstVec d, dt_bias, chunk_states, dlast_state;
  View dx, ddt, db, dc, dz;
  Vec da, dd, ddt_bias, dstate;
};
void run(Cpu, const ScanBackwardArgs&);
void run(Cuda, const ScanBackwardArgs&);

}  // namespace norma
