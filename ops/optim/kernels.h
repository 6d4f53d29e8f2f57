#pragma once

#include <span>

#include "norma/core/device.h"
#include "norma/core/view.h"

namespace norma {

// Steps over all parameters of a model at once, in place: on a GPU one launch for each dtype among
// them. All dense; a parameter's gradient, m, v and velocity have its length. m, v and velocity are
// float32, float64 for float64.

/// What changes from step to step. A GPU kernel works out all that follows from them itself, so
/// that captured and plain steps have the same bits.
struct StepNumbers {
  double lr = 0;
  int64_t step = 0;  ///< from 1
};

/// What the gradients' norm decides about the step that follows. It lives where the parameters do:
/// nobody has to wait for it.
struct GradientState {
  double norm = 0;    ///< √Σ‖g‖² of the gradients as they were before the loss was scaled
  double factor = 1;  ///< the step multiplies each gradient by it: it clips and takes the scale out
  double loss_scale = 1;  ///< what the loss is multiplied by, under dynamic scaling
  double good_steps = 0;  ///< since the scale last changed
  double skipped = 0;     ///< steps left out so far
  uint32_t skip = 0;      ///< the coming one is
  uint32_t arrived = 0;   ///< the kernel's own: blocks that are done
};

/// Doubled after this many good steps, halved after one with an infinity or a NaN (Micikevicius et
/// al. 2018, arXiv:1710.03740).
inline constexpr double kLossScaleSteps = 2000;

constexpr void decide_step(GradientState& s, double scaled_norm, double limit, bool scaled) {
  s.norm = scaled_norm / s.loss_scale;
  s.factor = limit > 0 && s.norm > limit ? limit / s.norm : 1;
  s.skip = 0;
  if (!scaled) return;
  s.factor /= s.loss_scale;
  s.skip = !(s.norm - s.norm == 0);  // NaN for infinities and NaN
  if (s.skip) {
    s.skipped += 1, s.good_steps = 0, s.loss_scale *= 0.5;
  } else if ((s.good_steps += 1) >= kLossScaleSteps) {
    s.good_steps = 0, s.loss_scale *= 2;
  }
}

/// norm = √Σ over all gradients, in an order that follows from their sizes alone; and what it
/// decides.
struct GradNormArgs {
  std::span<const ConstVec> grads;
  struct Decide {
    double limit;  ///< 0: none
    bool scaled;   ///< the loss was multiplied by state->loss_scale, which may change now
  } decide;
  GradientState* state;
  float* norm;
};
void run(Cpu, const GradNormArgs&);
void run(Cuda, const GradNormArgs&);

struct AdamwSlot {
  Vec p;
  ConstVec grad;
  Vec m, v;
  Vec rounded;  ///< p's new values in a half type too, or none
  double weight_decay;
};
struct AdamwArgs {
  std::span<const AdamwSlot> slots;
  StepNumbers numbers;
  const StepNumbers* on_device;  ///< where they stand instead in a captured call on a GPU, or null
  double beta1, beta2, eps;
  const GradientState* state;  ///< none: every gradient as it is
};
void run(Cpu, const AdamwArgs&);
void run(Cuda, const AdamwArgs&);

struct SgdSlot {
  Vec p;
  ConstVec grad;
  Vec velocity;  ///< none without momentum
  Vec rounded;   ///< as for AdamW
  double weight_decay;
};
struct SgdArgs {
  std::span<const SgdSlot> slots;
  StepNumbers numbers;
  const StepNumbers* on_device;  ///< as for AdamW
  double momentum;
  bool nesterov;
  const GradientState* state;
};
void run(Cpu, const SgdArgs&);
void run(Cuda, const SgdArgs&);

/// Each x *= state->factor; nothing is written where that is 1.
struct ScaleArgs {
  std::span<const Vec> xs;
  const GradientState* state;
};
void run(Cpu, const ScaleArgs&);
void run(Cuda, const ScaleArgs&);

}  // namespace norma
