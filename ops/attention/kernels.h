#pragma once

#include "norma/core/device.h"
#include "norma/core/philox.h"
#include "norma/core/view.h"

namespace norma {

/// What forward and backward share. Dropout compares 16-bit numbers with p, which is rounded to
/// 1/65536: that of key s of row (b, h, t) is half s % 2 (0 the lower) of word s / 2 % 4 that `key`
/// gives group ((b H + h) T + t) ⌈S / 8⌉ + s / 8, eight keys a call of the generator.
struct AttentionSettings {
  bool causal;
  double scale;  ///< of the scores
  double p = 0;  ///< of dropout on the probabilities
  RandomKey key = {};

  /// Numbers below it are dropped.
  int dropped() const {
    const int rounded = static_cast<int>(p * 65536 + 0.5);  // NOLINT: p ≥ 0
    return rounded < 65535 ? rounded : 65535;
  }
  /// What the others are multiplied by: 1 / (1 − p).
  double rescale() const { return 65536. / (65536 - dropped()); }
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
  bool settled = false;  ///< all but dy was made before the sweep (core/cuda/early.h)
};
void run(Cpu, const AttentionBackwardArgs&);
void run(Cuda, const AttentionBackwardArgs&);

/// y = x ⊙ m, the mask alone, for x (B, H, T, S) as B·H·T rows: what the definition says.
struct AttentionDropoutArgs {
  AttentionSettings settings;
  ConstRows x;
  Rows y;
};
void run(Cpu, const AttentionDropoutArgs&);
void run(Cuda, const AttentionDropoutArgs&);

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
