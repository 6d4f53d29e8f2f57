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

/// Losses and lse, and over the logits the gradient of share Σ losses, share as above: on a GPU.
struct CrossEntropyInPlaceArgs {
  Rows logits;
  ConstVec targets;
  int64_t ignore_index;
  double label_smoothing;
  Vec losses, lse, share;
};
/// Whether rows of that many bfloat16 have such a kernel: long ones that two blocks of a
/// multiprocessor can hold, in whole packets.
constexpr bool has_cross_entropy_in_place(int64_t cols) {
  return cols > 1024 && cols <= 50688 && cols % 8 == 0;
}
void run(Cuda, const CrossEntropyInPlaceArgs&);

/// gradient ⊙= the one factor, in place; where that is 1 nothing is read.
struct CrossEntropyScaleArgs {
  ConstVec factor;
  Vec gradient;
};
void run(Cuda, const CrossEntropyScaleArgs&);

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
