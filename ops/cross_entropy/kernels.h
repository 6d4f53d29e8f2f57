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

struct CrossEntropyBackwardArgs {
  ConstVec dlosses;
  ConstRows logits;
  ConstVec targets, lse;
  int64_t ignore_index;
  double label_smoothing;
  Rows dlogits;
};
void run(Cpu, const CrossEntropyBackwardArgs&);
void run(Cuda, const CrossEntropyBackwardArgs&);

}  // namespace norma
