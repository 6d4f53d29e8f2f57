#include "norma/nn/module.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "norma/core/autograd.h"
#include "norma/core/format.h"

namespace norma::nn {
namespace {

class Collector final : public Visitor {
 public:
  std::vector<NamedTensor> parameters, all;

 private:
  void parameter(const std::string& name, Parameter& p) override {
    if (!seen_.insert(&p.impl()).second) return;
    parameters.push_back({name, p});
    all.push_back({name, p});
  }
  void buffer(const std::string& name, Tensor& t) override { all.push_back({name, t}); }
  std::set<const TensorImpl*> seen_;
};

class ModeSetter final : public Visitor {
 public:
  explicit ModeSetter(bool on) : on_(on) {}
  std::vector<std::pair<bool*, bool>> before;

 private:
  void parameter(const std::string&, Parameter&) override {}
  void mode(bool& training) override {
    before.emplace_back(&training, std::exchange(training, on_));
  }
  bool on_;
};

Collector collected(const Visit& visit) {
  Collector collector;
  visit(collector);
  return collector;
}

/// Gives every handle of `t` the values of `values`.
void swap_values(const Tensor& t, const Tensor& values) {
  TensorImpl &target = t.impl(), &source = values.impl();
  target.storage = source.storage;
  target.rounded.reset();
  target.offset = source.offset;
  target.shape = source.shape;
  target.strides = source.strides;
  target.dtype = source.dtype;
  target.node = {};  // a leaf that knows the old dtype and device
  if (target.requires_grad) norma::detail::edge_of(t);
}

}  // namespace

namespace detail {

std::vector<NamedTensor> named_parameters(const Visit& visit) {
  return collected(visit).parameters;
}
std::vector<NamedTensor> state_dict(const Visit& visit) { return collected(visit).all; }

void load_state_dict(const Visit& visit, const std::vector<std::pair<std::string, Tensor>>& tensors,
                     std::string_view where) {
  std::map<std::string, const Tensor*> given;
  for (const auto& [name, tensor] : tensors) given[name] = &tensor;
  std::vector<std::pair<Tensor, const Tensor*>> copies;
  for (const NamedTensor& t : state_dict(visit)) {
    const auto found = given.find(t.name);
    if (found == given.end())
      throw IOError("{}: {} of shape {} must be there, but is not", where, t.name,
                    t.tensor.shape());
    if (found->second->shape() != t.tensor.shape())
      throw IOError("{}: {} is {}, but the model has {}", where, t.name, found->second->shape(),
                    t.tensor.shape());
    copies.emplace_back(t.tensor, found->second);
    given.erase(found);
  }
  if (!given.empty())
    throw IOError("{}: {} is not in the model, nor {} others", where, given.begin()->first,
                  given.size() - 1);
  const NoGrad plain;
  for (const auto& [target, values] : copies) target.copy_(values->to(target.device()));
}

void set_training(const Visit& visit, bool on) {
  ModeSetter setter(on);
  visit(setter);
}

void convert(const Visit& visit, const std::function<Tensor(const Tensor&)>& to) {
  const NoGrad plain;
  for (const NamedTensor& t : state_dict(visit)) {
    const Tensor values = to(t.tensor.detach());
    const bool has_grad = t.tensor.has_grad();
    const Tensor gradient = has_grad ? to(t.tensor.grad()) : Tensor();
    swap_values(t.tensor, values);
    if (has_grad) t.tensor.set_grad(gradient);
  }
}

}  // namespace detail

EvalScope::EvalScope(const Visit& visit) {
  ModeSetter setter(false);
  visit(setter);
  before_ = std::move(setter.before);
}
EvalScope::~EvalScope() {
  for (const auto& [mode, before] : before_) *mode = before;
}

std::string parameter_table(const std::vector<NamedTensor>& parameters) {
  size_t width = 4;
  for (const NamedTensor& p : parameters) width = std::max(width, p.name.size());
  std::string table;
  int64_t total = 0, trained = 0;
  for (const NamedTensor& p : parameters) {
    const Tensor& t = p.tensor;
    const std::string shape = to_string(t.shape());
    table += p.name + std::string(width + 2 - p.name.size(), ' ') + shape +
             std::string(shape.size() < 16 ? 16 - shape.size() : 1, ' ') +
             format("{:<10}{:>12}{}\n", to_string(t.dtype()), t.numel(),
                    t.requires_grad() ? "" : "  frozen");
    total += t.numel();
    if (t.requires_grad()) trained += t.numel();
  }
  return table + format("{} parameters, {} trained\n", total, trained);
}

bool matches(std::string_view name, std::string_view pattern) {
  const size_t star = pattern.find('*');
  if (star == pattern.npos) return name == pattern;
  if (!name.starts_with(pattern.substr(0, star))) return false;
  const std::string_view rest = pattern.substr(star + 1);
  for (size_t i = star; i <= name.size(); ++i)
    if (matches(name.substr(i), rest)) return true;
  return false;
}

int64_t freeze(const std::vector<NamedTensor>& parameters, std::string_view pattern, bool only) {
  int64_t fitting = 0, frozen = 0;
  for (const NamedTensor& p : parameters) fitting += matches(p.name, pattern);
  if (fitting == 0)
    throw ValueError("freeze: the pattern must fit a parameter's name, but {} fits none", pattern);
  for (const NamedTensor& p : parameters) {
    if (matches(p.name, pattern) == only) continue;
    p.tensor.clear_grad();
    p.tensor.requires_grad_(false);
    ++frozen;
  }
  return frozen;
}

}  // namespace norma::nn
