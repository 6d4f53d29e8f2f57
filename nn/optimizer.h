#pragma once

#include <memory>
#include <string>
#include <vector>

#include "norma/nn/module.h"
#include "norma/ops/optim/kernels.h"

namespace norma::nn {

/// Parameters that share their weight decay.
struct ParameterGroup {
  std::vector<NamedTensor> parameters;
  double weight_decay = 0;
};
/// Matrices decay; gains and biases (fewer than two dimensions) do only where `decay_gains`; A_log,
/// D and dt_bias of Mamba blocks never do.
std::vector<ParameterGroup> decay_groups(const std::vector<NamedTensor>& parameters,
                                         double weight_decay, bool decay_gains = false);

/// Changes parameters by their gradients. A parameter without a gradient, or frozen, stays.
/// ShapeError for one that is not dense.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  /// The learning rate of the steps that follow.
  void set_lr(double lr) { lr_ = lr; }
  double lr() const { return lr_; }
  /// √Σ‖g‖² over the gradients of all its parameters, a float32 scalar beside them. Where it
  /// exceeds `limit` > 0 the next step takes them times limit / norm; they themselves stay as they
  /// are.
  Tensor clip(double limit);
  /// One step; state of a parameter is made at its first. On a GPU one launch, two with clip().
  virtual void step() = 0;
  /// One step at that learning rate. GraphError inside a captured function, whose replays would
  /// repeat the number: set_lr() before its call and step() inside.
  void step(double lr);
  /// Dynamic loss scaling, for float16: the loss times a scale that halves when a gradient is not
  /// finite, a step that is then left out, and doubles after 2000 good ones. All of it is decided
  /// where the parameters live. The norm that clip() returns is that of the unscaled gradients.
  void use_loss_scaling(double first_scale = 65536);
  /// loss times the scale, without loss scaling the loss itself.
  Tensor scaled(const Tensor& loss);
  /// Whether loss scaling is in use, and how many steps it has left out (waits for the device).
  bool scales_loss() const { return scales_loss_; }
  int64_t skipped_steps() const;
  /// Every gradient goes: the next sweep begins with new ones. In a captured function those that
  /// were there before its call stay and become zero, since a replay finds them by their address.
  void zero_grad();
  /// What the next step depends on, by name, beside the parameters: for checkpoints.
  std::vector<std::pair<std::string, Tensor>> state() const;
  /// Takes what state() gave. IOError where a name or a shape does not fit.
  void load_state(const std::vector<std::pair<std::string, Tensor>>& tensors, int64_t steps,
                  std::string_view where);
  int64_t steps() const { return steps_; }

 protected:
  struct Slot {
    NamedTensor parameter;
    double weight_decay;
    std::vector<Tensor> states;  // in the order of state_names
  };
  Optimizer(const std::vector<ParameterGroup>& groups, std::vector<std::string> state_names);
  /// A zero state beside a parameter, in the dtype of statistics.
  static Tensor zero_state(const Tensor& parameter);
  /// Counts the step. Inside a captured call on a GPU the numbers stand at `on_device` alone.
  struct Numbers {
    StepNumbers values = {};
    const StepNumbers* on_device = nullptr;
  };
  Numbers next_numbers();
  /// f(slot, its gradient, its rounded values or none) for each parameter that takes part in a
  /// step, whose values f's caller is about to change.
  template <class F>
  void for_trained(const F& f);
  /// What clip() decided, for the step that follows it; none where nothing was asked.
  const GradientState* take_state();
  Device device() const;
  void move_state(Device where);
  /// Tells the observers of the step that was made.
  void notify(std::string_view name) const;

  double lr_ = 1e-3;
  bool scales_loss_ = false, clipped_ = false;
  Tensor gradient_state_;  // the bytes of a GradientState, where the parameters are
  std::vector<std::string> state_names_;
  std::vector<Slot> slots_;
  int64_t steps_ = 0;
};

struct AdamwOptions {
  double lr = 1e-3;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
};
/// AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101):
///   m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²
///   p ← p (1 − lr · decay) − lr · m̂ / (√v̂ + eps),  m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)
class AdamW final : public Optimizer {
 public:
  explicit AdamW(const std::vector<ParameterGroup>& groups, const AdamwOptions& options = {});
  using Optimizer::step;
  void step() override;

 private:
  AdamwOptions options_;
};

struct SgdOptions {
  double lr = 1e-3;
  double momentum = 0;
  bool nesterov = false;
};
/// p ← p (1 − lr · decay) − lr · u with u = g, or under momentum μ: b ← μ b + g and u = b, or
/// g + μ b for Nesterov (Sutskever et al. 2013, ICML).
class Sgd final : public Optimizer {
 public:
  explicit Sgd(const std::vector<ParameterGroup>& groups, const SgdOptions& options = {});
  using Optimizer::step;
  void step() override;

 private:
  SgdOptions options_;
};

/// √Σ‖g‖² over all gradients, a float32 scalar beside them; where it exceeds `limit` > 0 all are
/// scaled by limit / norm (Pascanu et al. 2013, arXiv:1211.5063). Optimizer::clip() does the same
/// without a pass over the gradients of its own.
Tensor clip_grad_norm(const std::vector<Tensor>& parameters, double limit);

enum class ScheduleKind { cosine, linear, constant };
struct Schedule {
  ScheduleKind kind = ScheduleKind::cosine;
  double lr = 1e-3, min_lr = 0;
  int64_t warmup = 0, steps = 1;

  /// The learning rate of step 0 … steps − 1: rises over `warmup` steps, then falls to min_lr.
  double at(int64_t step) const;
};

}  // namespace norma::nn
