#pragma once

#include "norma/core/device.h"
#include "norma/core/view.h"

namespace norma {

enum class SoftmaxFunction {
  softmax,
  log_softmax,
  logsumexp,
  softmax_backward,
  log_softmax_backward
};
/// Row by row: y = f(a), or f(dy = a, y = b) for the gradients. logsumexp gives one column.
struct SoftmaxArgs {
  SoftmaxFunction function;
  ConstRows a, b;
  Rows y;
};
void run(Cpu, const SoftmaxArgs&);
void run(Cuda, const SoftmaxArgs&);

}  // namespace norma
