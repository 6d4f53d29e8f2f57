#pragma once

#include "norma/core/device.h"
#include "norma/core/random.h"
#include "norma/core/view.h"

namespace norma {

/// What forward and backward share.
struct AttentionSettings {
  bool causal;
  double scale;        ///< of the scores
  double p = 0;        ///< of dropout on the probabilities
  RandomKey key = {};  ///< of its mask: that of element s of row (b, h, t) is drawn by dropout's
                       ///< rule for element ((b H + h) T + t) S̄ + s, S̄ being S rounded up to fours
};

/// Every view (B, H, length, D) with a last stride of 1, one floating dtype; lse dense (B, H, T) in
/// the dtype of statistics.
struct AttentionForwardArgs {
  AttentionSettings settings;
  ConstView q, k, v;
  View y, lse;
};
void run(Cpu, const AttentionForwardArgs&);
void run(Cuda, const AttentionForwardArgs&);

struct AttentionBackwardArgs {
  AttentionSettings settings;
  ConstView dy, q, k, v, y, lse;
  View delta;  ///< like lse, for the kernel's own use: Σ dy ⊙ y
  View dq, dk, dv;
};
void run(Cpu, const AttentionBackwardArgs&);
void run(Cuda, const AttentionBackwardArgs&);

/// While one lives, this thread uses on a GPU the kernels that run on any, not Hopper's own: for
/// tests.
class PortableAttention {
 public:
  PortableAttention();
  ~PortableAttention();
  PortableAttention(const PortableAttention&) = delete;
  PortableAttention& operator=(const PortableAttention&) = delete;

 private:
  bool before_;
};

}  // namespace norma
