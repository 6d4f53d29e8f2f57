#pragma once

#include "norma/core/device.h"
#include "norma/core/view.h"

namespace norma {

// In place, all dense, of one length. m, v and velocity are float32, float64 for float64.

/// What changes from step to step. A GPU kernel works out all that follows from them itself, so
/// that captured and plain steps have the same bits.
struct StepNumbers {
  double lr = 0;
  int64_t step = 0;  ///< from 1
};

struct AdamwArgs {
  Vec p;
  ConstVec grad;
  Vec m, v;
  StepNumbers numbers;
  const StepNumbers* on_device;  ///< where they stand instead in a captured call on a GPU, or null
  double beta1, beta2, eps, weight_decay;
};
void run(Cpu, const AdamwArgs&);
void run(Cuda, const AdamwArgs&);

struct SgdArgs {
  Vec p;
  ConstVec grad;
  Vec velocity;  ///< none without momentum
  StepNumbers numbers;
  const StepNumbers* on_device;  ///< as for AdamW
  double momentum, weight_decay;
  bool nesterov;
};
void run(Cpu, const SgdArgs&);
void run(Cuda, const SgdArgs&);

/// out = Σ x², in float64, in an order that follows from n alone.
struct SquareSumArgs {
  ConstVec x;
  double* out;
};
void run(Cpu, const SquareSumArgs&);
void run(Cuda, const SquareSumArgs&);

/// x *= factor
struct ScaleArgs {
  Vec x;
  double factor;
};
void run(Cpu, const ScaleArgs&);
void run(Cuda, const ScaleArgs&);

}  // namespace norma
