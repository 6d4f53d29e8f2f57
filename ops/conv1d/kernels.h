#pragma once

#include "norma/core/device.h"
#include "norma/core/view.h"

namespace norma {

/// x (B, T, C) with a last stride of 1, state (B, K − 1, C) dense or absent, both of one dtype;
/// w (C, K) and b (C) dense float32, or float64 for float64; y and last_state dense, like x.
struct Conv1dForwardArgs {
  bool silu;
  ConstView x, state;
  ConstView w;
  ConstVec b;
  View y, last_state;
};
void run(Cpu, const Conv1dForwardArgs&);
void run(Cuda, const Conv1dForwardArgs&);

/// dy and dx like x, last stride 1; dlast_state dense or absent; dstate dense; dw, db like w, b.
struct Conv1dBackwardArgs {
  bool silu;
  ConstView dy, dlast_state, x, state;
  ConstView w;
  ConstVec b;
  View dx, dstate;
  Vec dw, db;
};
void run(Cpu, const Conv1dBackwardArgs&);
void run(Cuda, const Conv1dBackwardArgs&);

}  // namespace norma
