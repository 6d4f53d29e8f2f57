#pragma once

#include "norma/core/device.h"
#include "norma/core/view.h"

namespace norma {

struct CrossEntropyForwardArgs {
  ConstRows logits;
  ConstVec targets;
  int64_t ignore_index;
  double label_smoothing;
  Vec losses, lse;
};
void run(Cpu, const CrossEntropyForwardArgs&);
void run(Cuda, const CrossEntropyForwardArgs&);

/// loss = share Σ losses, in one order whatever the device's size; share = 1 / max(1, counted
/// targets). All of the losses' dtype.
struct CrossEntropyMeanArgs {
  ConstVec losses, targets;
  int64_t ignore_index;
  Vec loss, share;
};
void run(Cpu, const CrossEntropyMeanArgs&);
void run(Cuda, const CrossEntropyMeanArgs&);

/// With a share the one dlosses is each row's, times the share.
struct CrossEntropyBackwardArgs {
  ConstVec dlosses, share;
  ConstRows logits;
  ConstVec targets, lse;
  int64_t ignore_index;
  double label_smoothing;
  Rows dlogits;
};
void run(Cpu, const CrossEntropyBackwardArgs&);
void run(Cuda, const CrossEntropyBackwardArgs&);

}  // namespace norma
