#include "norma/nn/optimizer.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <numbers>
#include <utility>

#include "norma/core/autograd.h"
#include "norma/core/captured_call.h"
#include "norma/core/copy.h"
#include "norma/core/dispatch.h"
#include "norma/core/op.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/view/view.h"

namespace norma::nn {

std::vector<ParameterGroup> decay_groups(const std::vector<NamedTensor>& parameters,
                                         double weight_decay, bool decay_gains) {
  std::vector<ParameterGroup> groups{{{}, weight_decay}, {{}, 0}};
  for (const NamedTensor& p : parameters) {
    const bool dynamics =  // of Mamba's recurrence: the papers decay none of them
        matches(p.name, "*A_log") || matches(p.name, "*.D") || matches(p.name, "*dt_bias");
    const bool decays = !dynamics && (p.tensor.dim() >= 2 || decay_gains);
    groups[decays ? 0 : 1].parameters.push_back(p);
  }
  return groups;
}

Optimizer::Optimizer(const std::vector<ParameterGroup>& groups,
                     std::vector<std::string> state_names)
    : state_names_(std::move(state_names)) {
  for (const ParameterGroup& group : groups)
    for (const NamedTensor& p : group.parameters) {
      if (!p.tensor.is_dense())
        throw ShapeError(
            "optimizer: {} must be dense, but has shape {} and strides {}; make it a parameter of "
            "its values' .contiguous()",
            p.name, p.tensor.shape(), p.tensor.strides());
      slots_.push_back({p, group.weight_decay, {}});
    }
}

Tensor Optimizer::zero_state(const Tensor& p) {
  const norma::detail::OutsideCapturedCall kept;
  return zeros(p.shape(), stats_dtype(p.dtype()), p.device());
}

void Optimizer::step(double lr) {
  if (norma::detail::is_replayed())
    throw GraphError(
        "step: a captured function must find the learning rate in the optimizer, since its replays "
        "would repeat a number, but {} came; call set_lr() before it and step() inside",
        lr);
  set_lr(lr);
  step();
}

namespace {

/// The bytes of a GradientState as elements of float64.
constexpr int64_t kStateWords = sizeof(GradientState) / sizeof(double);
static_assert(sizeof(GradientState) % sizeof(double) == 0);
constexpr int64_t kFactorWord = offsetof(GradientState, factor) / sizeof(double);
constexpr int64_t kScaleWord = offsetof(GradientState, loss_scale) / sizeof(double);
constexpr int64_t kSkippedWord = offsetof(GradientState, skipped) / sizeof(double);

/// A fresh one, made where it lives: also inside a captured function.
Tensor make_state(Device device, double loss_scale) {
  const Tensor state = zeros({kStateWords}, float64, device);
  const auto word = [&](int64_t at) { return norma::detail::raw_view(state, {1}, {1}, at); };
  word(kFactorWord).fill_(1);
  word(kScaleWord).fill_(loss_scale);
  return state;
}
GradientState* state_in(const Tensor& t) { return static_cast<GradientState*>(t.data()); }

/// The norm of all gradients and what it decides.
Tensor decide(const std::vector<Tensor>& grads, const GradNormArgs::Decide& how, Device device,
              const Tensor& state) {
  std::vector<ConstVec> views(grads.begin(), grads.end());
  Tensor norm = empty(Shape{}, float32, device);
  dispatch(device, GradNormArgs{.grads = views,
                                .decide = how,
                                .state = state_in(state),
                                .norm = static_cast<float*>(norm.data())});
  return norm;
}

std::vector<Tensor> dense_gradients(const std::vector<Tensor>& parameters) {
  std::vector<Tensor> grads;
  for (const Tensor& p : parameters)
    if (p.has_grad()) grads.push_back(norma::detail::dense(p.grad()));
  return grads;
}

}  // namespace

void Optimizer::notify(std::string_view name) const {
  if (!Observer::current()) return;
  for (const Slot& slot : slots_) {
    const Tensor& p = slot.parameter.tensor;
    if (!p.requires_grad() || !p.has_grad()) continue;
    for (const Tensor& state : slot.states) notify_write(name, p, state);
    if (slot.states.empty()) notify_write(name, p);
  }
}

Device Optimizer::device() const {
  return slots_.empty() ? cpu : slots_.front().parameter.tensor.device();
}

void Optimizer::move_state(Device where) {
  const norma::detail::OutsideCapturedCall kept;
  if (!gradient_state_.defined()) gradient_state_ = make_state(where, 1);
  if (gradient_state_.device() != where) gradient_state_ = gradient_state_.to(where);
}

Tensor Optimizer::clip(double limit) {
  const NoGrad plain;
  const Device where = device();
  move_state(where);
  std::vector<Tensor> trained;
  for (const Slot& slot : slots_)
    if (slot.parameter.tensor.requires_grad()) trained.push_back(slot.parameter.tensor);
  clipped_ = true;
  return decide(dense_gradients(trained), {.limit = limit, .scaled = scales_loss_}, where,
                gradient_state_);
}

const GradientState* Optimizer::take_state() {
  if (scales_loss_ && !clipped_) clip(0);
  const bool use = std::exchange(clipped_, false);
  return use ? state_in(gradient_state_) : nullptr;
}

void Optimizer::use_loss_scaling(double first_scale) {
  scales_loss_ = true;
  gradient_state_ = make_state(device(), first_scale);
}
Tensor Optimizer::scaled(const Tensor& loss) {
  if (!scales_loss_) return loss;
  move_state(loss.device());
  return loss * gradient_state_.select(0, kScaleWord).to(loss.dtype()).reshape(loss.shape());
}
int64_t Optimizer::skipped_steps() const {
  return gradient_state_.defined() ? gradient_state_.select(0, kSkippedWord).item<int64_t>() : 0;
}

template <class F>
void Optimizer::for_trained(const F& f) {
  for (Slot& slot : slots_) {
    const Tensor& p = slot.parameter.tensor;
    if (!p.requires_grad() || !p.has_grad()) continue;
    // Rounded values that follow the weight's go on doing so.
    TensorImpl& impl = p.impl();
    const bool follows = impl.rounded && impl.rounded_version == p.storage()->version();
    f(slot, norma::detail::dense(p.grad()), follows ? Tensor(impl.rounded) : Tensor());
    p.storage()->bump_version();
    if (follows) impl.rounded_version = p.storage()->version();
  }
}

void Optimizer::zero_grad() {
  using norma::detail::in_captured_call, norma::detail::made_in_captured_call;
  const NoGrad plain;
  for (const Slot& slot : slots_) {
    const Tensor& p = slot.parameter.tensor;
    if (in_captured_call() && p.has_grad() && !made_in_captured_call(p.grad()))
      p.grad().zero_();
    else
      p.clear_grad();
  }
}

Optimizer::Numbers Optimizer::next_numbers() {
  const std::function<StepNumbers()> next = [this] { return StepNumbers{lr_, ++steps_}; };
  if (const auto* place = norma::detail::value_each_call<StepNumbers>(next)) return {{}, place};
  return {next()};
}

std::vector<std::pair<std::string, Tensor>> Optimizer::state() const {
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const Slot& slot : slots_)
    for (size_t i = 0; i < slot.states.size(); ++i)
      tensors.emplace_back(state_names_[i] + "." + slot.parameter.name, slot.states[i]);
  if (scales_loss_) tensors.emplace_back("loss_scale", gradient_state_);
  return tensors;
}

void Optimizer::load_state(const std::vector<std::pair<std::string, Tensor>>& tensors,
                           int64_t steps, std::string_view where) {
  std::map<std::string, const Tensor*> given;
  for (const auto& [name, tensor] : tensors) given[name] = &tensor;
  if (const auto scale = given.find("loss_scale"); scale != given.end()) {
    if (!scales_loss_ || scale->second->spec().shape != gradient_state_.shape())
      throw IOError("{}: loss_scale must belong to a run in float16, but this one has no scaling",
                    where);
    gradient_state_.copy_(*scale->second);
    given.erase(scale);
  }
  for (Slot& slot : slots_) {
    std::vector<Tensor> states;
    for (const std::string& kind : state_names_) {
      const auto found = given.find(kind + "." + slot.parameter.name);
      if (found == given.end()) continue;
      if (found->second->shape() != slot.parameter.tensor.shape())
        throw IOError("{}: {} is {}, but its parameter is {}", where, found->first,
                      found->second->shape(), slot.parameter.tensor.shape());
      states.push_back(zero_state(slot.parameter.tensor));
      states.back().copy_(*found->second);
      given.erase(found);
    }
    if (!states.empty() && states.size() != state_names_.size())
      throw IOError("{}: the optimizer's state of {} must be whole, but a part is missing", where,
                    slot.parameter.name);
    slot.states = std::move(states);
  }
  if (!given.empty())
    throw IOError("{}: {} belongs to no parameter of the optimizer", where, given.begin()->first);
  steps_ = steps;
}

namespace {
void require_setting(bool holds, const char* optimizer, const char* setting, const char* wanted,
                     double got) {
  if (!holds) throw ValueError("{}: {} must be {}, but is {}", optimizer, setting, wanted, got);
}
bool is_share(double x) { return x >= 0 && x < 1; }
}  // namespace

AdamW::AdamW(const std::vector<ParameterGroup>& groups, const AdamwOptions& options)
    : Optimizer(groups, {"m", "v"}), options_(options) {
  require_setting(options.lr >= 0, "AdamW", "lr", "at least 0", options.lr);
  require_setting(is_share(options.beta1), "AdamW", "beta1", "in [0, 1)", options.beta1);
  require_setting(is_share(options.beta2), "AdamW", "beta2", "in [0, 1)", options.beta2);
  require_setting(options.eps > 0, "AdamW", "eps", "above 0", options.eps);
  set_lr(options.lr);
}

void AdamW::step() {
  const NoGrad plain;
  const Numbers numbers = next_numbers();
  const GradientState* state = take_state();
  std::vector<Tensor> grads;  // alive until the step runs
  std::vector<AdamwSlot> slots;
  for_trained([&](Slot& slot, const Tensor& grad, const Tensor& rounded) {
    const Tensor& p = slot.parameter.tensor;
    if (slot.states.empty()) slot.states = {zero_state(p), zero_state(p)};
    grads.push_back(grad);
    slots.push_back({.p = p,
                     .grad = grad,
                     .m = slot.states[0],
                     .v = slot.states[1],
                     .rounded = rounded,
                     .weight_decay = slot.weight_decay});
  });
  dispatch(device(), AdamwArgs{.slots = slots,
                               .numbers = numbers.values,
                               .on_device = numbers.on_device,
                               .beta1 = options_.beta1,
                               .beta2 = options_.beta2,
                               .eps = options_.eps,
                               .state = state});
  norma::detail::count_write();  // for_trained() counted before it
  notify("adamw");
}

Sgd::Sgd(const std::vector<ParameterGroup>& groups, const SgdOptions& options)
    : Optimizer(groups, options.momentum > 0 ? std::vector<std::string>{"velocity"}
                                             : std::vector<std::string>{}),
      options_(options) {
  require_setting(options.lr >= 0, "Sgd", "lr", "at least 0", options.lr);
  require_setting(is_share(options.momentum), "Sgd", "momentum", "in [0, 1)", options.momentum);
  require_setting(!options.nesterov || options.momentum > 0, "Sgd", "momentum",
                  "above 0 for Nesterov", options.momentum);
  set_lr(options.lr);
}

void Sgd::step() {
  const NoGrad plain;
  const Numbers numbers = next_numbers();
  const GradientState* state = take_state();
  std::vector<Tensor> grads;
  std::vector<SgdSlot> slots;
  for_trained([&](Slot& slot, const Tensor& grad, const Tensor& rounded) {
    const Tensor& p = slot.parameter.tensor;
    if (options_.momentum > 0 && slot.states.empty()) slot.states = {zero_state(p)};
    grads.push_back(grad);
    slots.push_back({.p = p,
                     .grad = grad,
                     .velocity = slot.states.empty() ? Vec() : Vec(slot.states[0]),
                     .rounded = rounded,
                     .weight_decay = slot.weight_decay});
  });
  dispatch(device(), SgdArgs{.slots = slots,
                             .numbers = numbers.values,
                             .on_device = numbers.on_device,
                             .momentum = options_.momentum,
                             .nesterov = options_.nesterov,
                             .state = state});
  norma::detail::count_write();
  notify("sgd");
}

Tensor clip_grad_norm(const std::vector<Tensor>& parameters, double limit) {
  const NoGrad plain;
  const std::vector<Tensor> grads = dense_gradients(parameters);
  const Device device = grads.empty() ? cpu : grads.front().device();
  const Tensor state = make_state(device, 1);
  const Tensor norm = decide(grads, {.limit = limit, .scaled = false}, device, state);
  if (limit > 0) {
    std::vector<Vec> views(grads.begin(), grads.end());
    dispatch(device, ScaleArgs{.xs = views, .state = state_in(state)});
    size_t i = 0;
    for (const Tensor& p : parameters) {
      if (!p.has_grad()) continue;
      const Tensor& scaled = grads[i++];
      if (scaled.is_same(p.grad()))
        scaled.storage()->bump_version();
      else
        p.grad().copy_(scaled);
    }
  }
  return norm;
}

double Schedule::at(int64_t step) const {
  if (step < warmup) return lr * static_cast<double>(step + 1) / static_cast<double>(warmup + 1);
  const auto rest = static_cast<double>(std::max<int64_t>(1, steps - warmup));
  const double done = std::min(1.0, static_cast<double>(step - warmup) / rest);
  switch (kind) {
    case ScheduleKind::cosine:
      return min_lr + (lr - min_lr) * 0.5 * (1 + std::cos(std::numbers::pi * done));
    case ScheduleKind::linear:
      return lr + (min_lr - lr) * done;
    case ScheduleKind::constant:
      return lr;
  }
  return lr;
}

}  // namespace norma::nn
