#include "norma/nn/optimizer.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>

#include "norma/core/autograd.h"
#include "norma/core/captured_call.h"
#include "norma/core/dispatch.h"
#include "norma/core/op.h"

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
    for (const NamedTensor& p : group.parameters) slots_.push_back({p, group.weight_decay, {}});
}

Tensor Optimizer::zero_state(const Tensor& p) {
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
  return tensors;
}

void Optimizer::load_state(const std::vector<std::pair<std::string, Tensor>>& tensors,
                           int64_t steps, std::string_view where) {
  std::map<std::string, const Tensor*> given;
  for (const auto& [name, tensor] : tensors) given[name] = &tensor;
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

AdamW::AdamW(const std::vector<ParameterGroup>& groups, const AdamwOptions& options)
    : Optimizer(groups, {"m", "v"}), options_(options) {
  set_lr(options.lr);
}

void AdamW::step() {
  const NoGrad plain;
  const Numbers numbers = next_numbers();
  for (Slot& slot : slots_) {
    const Tensor& p = slot.parameter.tensor;
    if (!p.requires_grad() || !p.has_grad()) continue;
    if (slot.states.empty()) slot.states = {zero_state(p), zero_state(p)};
    const Tensor g = norma::detail::dense(p.grad());
    dispatch(p.device(), AdamwArgs{.p = p,
                                   .grad = g,
                                   .m = slot.states[0],
                                   .v = slot.states[1],
                                   .numbers = numbers.values,
                                   .on_device = numbers.on_device,
                                   .beta1 = options_.beta1,
                                   .beta2 = options_.beta2,
                                   .eps = options_.eps,
                                   .weight_decay = slot.weight_decay});
    p.storage()->bump_version();
    notify_write("adamw", p, slot.states[0]);
    notify_write("adamw", p, slot.states[1]);
  }
}

Sgd::Sgd(const std::vector<ParameterGroup>& groups, const SgdOptions& options)
    : Optimizer(groups, options.momentum > 0 ? std::vector<std::string>{"velocity"}
                                             : std::vector<std::string>{}),
      options_(options) {
  set_lr(options.lr);
}

void Sgd::step() {
  const NoGrad plain;
  const Numbers numbers = next_numbers();
  for (Slot& slot : slots_) {
    const Tensor& p = slot.parameter.tensor;
    if (!p.requires_grad() || !p.has_grad()) continue;
    if (options_.momentum > 0 && slot.states.empty()) slot.states = {zero_state(p)};
    const Tensor g = norma::detail::dense(p.grad());
    dispatch(p.device(), SgdArgs{.p = p,
                                 .grad = g,
                                 .velocity = slot.states.empty() ? Vec() : Vec(slot.states[0]),
                                 .numbers = numbers.values,
                                 .on_device = numbers.on_device,
                                 .momentum = options_.momentum,
                                 .weight_decay = slot.weight_decay,
                                 .nesterov = options_.nesterov});
    p.storage()->bump_version();
    notify_write("sgd", p, slot.states.empty() ? Tensor() : slot.states[0]);
  }
}

Tensor clip_grad_norm(const std::vector<Tensor>& parameters, double limit) {
  const NoGrad plain;
  double total = 0;
  for (const Tensor& p : parameters) {
    if (!p.has_grad()) continue;
    double squares = 0;
    const Tensor g = norma::detail::dense(p.grad());
    dispatch(p.device(), SquareSumArgs{.x = g, .out = &squares});
    total += squares;
  }
  const double norm = std::sqrt(total);
  if (limit > 0 && norm > limit)
    for (const Tensor& p : parameters) {
      if (!p.has_grad()) continue;
      const Tensor g = norma::detail::dense(p.grad());
      dispatch(p.device(), ScaleArgs{.x = g, .factor = limit / norm});
      if (!g.is_same(p.grad())) p.set_grad(g);
    }
  const Tensor result = empty(Shape{});
  *static_cast<float*>(result.data()) = static_cast<float>(norm);  // a result, no given number
  return result;
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
