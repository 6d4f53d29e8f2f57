#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "norma/core/tensor.h"

namespace norma::nn {

/// A tensor that is trained. It moves but does not copy, so that a module that holds one moves but
/// does not copy either; clone(), state_dict() and load_state_dict() are the ways to copy values.
class Parameter : public Tensor {
 public:
  Parameter() = default;
  explicit Parameter(const Tensor& values) : Tensor(values.detach()) { requires_grad_(); }
  Parameter(Parameter&&) = default;
  Parameter& operator=(Parameter&&) = default;

  /// Becomes the same parameter as `other`: one set of values, one gradient.
  void tie(const Parameter& other) { Tensor::operator=(other); }
};

/// What a module shows itself to. A module is any struct with
///   void visit(Visitor& v) { v("weight", weight); v("norm", norm); }
/// which names its Parameters, its Tensors (buffers: saved, not trained), its sub-modules, and
/// optionals and vectors of these. Names, state dict, counting, printing all come from it.
class Visitor {
 public:
  virtual ~Visitor() = default;

  template <class M>
  void operator()(std::string_view name, M& member) {
    if constexpr (std::is_same_v<M, Parameter>) {
      if (member.defined()) parameter(full(name), member);
    } else if constexpr (std::is_same_v<M, Tensor>) {
      if (member.defined()) buffer(full(name), member);
    } else {
      const size_t length = prefix_.size();
      if (!name.empty()) prefix_ = full(name) + ".";
      descend(member);
      prefix_.resize(length);
    }
  }
  /// For a module that does something else while it is trained.
  void training(bool& on) { mode(on); }

 protected:
  virtual void parameter(const std::string& name, Parameter& p) = 0;
  virtual void buffer(const std::string&, Tensor&) {}
  virtual void mode(bool&) {}

 private:
  std::string full(std::string_view name) const { return prefix_ + std::string(name); }

  template <class M>
  void descend(M& module) {
    module.visit(*this);
  }
  template <class M>
  void descend(std::optional<M>& module) {
    if (module) descend(*module);
  }
  template <class M>
  void descend(std::unique_ptr<M>& module) {
    if (module) descend(*module);
  }
  template <class M>
  void descend(std::vector<M>& modules) {
    for (size_t i = 0; i < modules.size(); ++i) (*this)(std::to_string(i), modules[i]);
  }

  std::string prefix_;
};

/// A module of any type, seen through its visit alone.
using Visit = std::function<void(Visitor&)>;
template <class M>
Visit visit_of(M& module) {
  return [&module](Visitor& v) { v("", module); };
}

struct NamedTensor {
  std::string name;
  Tensor tensor;
};

namespace detail {
std::vector<NamedTensor> named_parameters(const Visit& visit);
std::vector<NamedTensor> state_dict(const Visit& visit);
void load_state_dict(const Visit& visit, const std::vector<std::pair<std::string, Tensor>>& tensors,
                     std::string_view where);
void set_training(const Visit& visit, bool on);
void convert(const Visit& visit, const std::function<Tensor(const Tensor&)>& to);
}  // namespace detail

/// The parameters with their names, a tied one once, under the name visited first.
template <class M>
std::vector<NamedTensor> named_parameters(M& module) {
  return detail::named_parameters(visit_of(module));
}
template <class M>
std::vector<Tensor> parameters(M& module) {
  std::vector<Tensor> tensors;
  for (const NamedTensor& p : named_parameters(module)) tensors.push_back(p.tensor);
  return tensors;
}
/// Parameters and buffers with their names; the tensors share the module's values.
template <class M>
std::vector<NamedTensor> state_dict(M& module) {
  return detail::state_dict(visit_of(module));
}
/// Copies values into the module, converted to its dtypes and devices. `where` stands in errors.
/// Throws IOError for a name too many or too few and for a wrong shape; then nothing was changed.
template <class M>
void load_state_dict(M& module, const std::vector<std::pair<std::string, Tensor>>& tensors,
                     std::string_view where = "load_state_dict") {
  detail::load_state_dict(visit_of(module), tensors, where);
}
/// Turns what is random in training on or off, in all sub-modules.
template <class M>
void train(M& module, bool on = true) {
  detail::set_training(visit_of(module), on);
}
template <class M>
void eval(M& module) {
  train(module, false);
}
/// While one lives, the module is as eval() makes it; afterwards each sub-module is as it was. The
/// module must not move meanwhile.
class EvalScope {
 public:
  template <class M>
  explicit EvalScope(M& module) : EvalScope(visit_of(module)) {}
  explicit EvalScope(const Visit& visit);
  ~EvalScope();
  EvalScope(const EvalScope&) = delete;
  EvalScope& operator=(const EvalScope&) = delete;

 private:
  std::vector<std::pair<bool*, bool>> before_;
};
/// Converts all floating parameters and buffers, whoever else holds a handle to them included.
template <class M>
void to(M& module, DType dtype) {
  detail::convert(visit_of(module),
                  [=](const Tensor& t) { return is_floating(t.dtype()) ? t.to(dtype) : t; });
}
template <class M>
void to(M& module, Device device) {
  detail::convert(visit_of(module), [=](const Tensor& t) { return t.to(device); });
}
template <class M>
int64_t count_parameters(M& module) {
  int64_t n = 0;
  for (const NamedTensor& p : named_parameters(module)) n += p.tensor.numel();
  return n;
}

/// A table of names, shapes, dtypes and sizes, with the total.
std::string parameter_table(const std::vector<NamedTensor>& parameters);

/// Whether `name` fits a pattern in which * stands for any run of characters.
bool matches(std::string_view name, std::string_view pattern);
/// Parameters whose name fits stop being trained (or, for only = true, those whose does not).
/// Returns how many tensors are frozen. ValueError where no name fits.
int64_t freeze(const std::vector<NamedTensor>& parameters, std::string_view pattern,
               bool only = false);

}  // namespace norma::nn
