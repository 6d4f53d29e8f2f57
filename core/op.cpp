#include "norma/core/op.h"

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <set>
#include <string>

#include "norma/core/captured_call.h"
#include "norma/core/cuda/side_stream.h"

namespace norma {
namespace {
thread_local constinit Observer* current_observer = nullptr;
thread_local constinit const OpInfo* running = nullptr;

/// Names the running op while it lives; nested ones give the name back.
class Running {
 public:
  explicit Running(const OpInfo& op) : before_(std::exchange(running, &op)) {}
  ~Running() { running = before_; }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

 private:
  const OpInfo* before_;
};
}  // namespace

std::string_view current_op() { return running ? running->name : kNoOp; }

Observer::Observer() : outer_(current_observer) { current_observer = this; }
Observer::~Observer() { current_observer = outer_; }
Observer* Observer::current() { return current_observer; }

void notify_write(std::string_view name, const Tensor& target, const Tensor& source, double value) {
  for (Observer* o = Observer::current(); o; o = o->outer()) o->wrote(name, target, source, value);
}

void OptionsRef::throw_wrong_type() {
  throw GraphError("options: must be read as the type that the op was applied with");
}

/// A recorded application: the op, copies of its options, and what its forward saved.
class OpNode final : public Node {
 public:
  OpNode(const OpInfo& op, const Call& call, Edges&& edges)
      : Node(detail::next_sequence({edges.data(), edges.size()}), std::move(edges)),
        op_(op),
        results_(static_cast<uint32_t>(call.outputs.size())) {
    if (op.copy_options) options_ = op.copy_options(call.options);
  }
  ~OpNode() override {
    if (options_) op_.free_options(options_);
  }

  std::string_view name() const override { return op_.name; }
  void release_saved() override {
    saved_.clear();
    released_ = true;
  }

  Gradients backward(Gradients grads) override {
    if (released_)
      throw GraphError(
          "backward: the graph must still be there, but what {} saved was freed by an earlier "
          "sweep; pass .retain_graph = true to that one",
          op_.name);
    if (!op_.backward) {
      const Autocast as_in_forward(autocast_);
      return backward_through_definition(grads);
    }
    grads.resize(results_);
    Context ctx(op_, nullptr, this, is_grad_enabled());
    return op_.backward(ctx, grads);
  }

  void save_inputs(const Call& call) {
    places_ = static_cast<uint32_t>(call.inputs.size());
    saved_.reserve(places_);
    for (uint32_t i = 0; i < places_; ++i)
      if (call.inputs[i]->defined()) add_saved(Tensor(*call.inputs[i]), i);
  }

  void save(Context& ctx, const Call& call) {
    places_ = ctx.places_;
    saved_.reserve(ctx.kept_.size());
    for (Context::Kept& kept : ctx.kept_) {
      int output = -1;
      if (kept.constant) {
        if (kept.tensor.requires_grad())
          throw GraphError("{}: save_constant takes tensors without history; save() it instead",
                           op_.name);
      } else if (!is_input(kept.tensor, call)) {
        output = output_index(kept.tensor, call);
        const Tensor& y = kept.tensor;  // a twin, since the output would hold its own maker
        kept.tensor = detail::raw_view(y, y.shape(), y.strides(), y.offset());
      }
      add_saved(std::move(kept.tensor), kept.place, output);
    }
  }

  Tensor saved(int i) const {
    if (i < 0 || static_cast<uint32_t>(i) >= places_)
      throw GraphError("{}: saved({}) must be below {}, the number of tensors saved", op_.name, i,
                       places_);
    const Saved* found = saved_at(i);
    if (!found) return {};
    const Saved& saved = *found;
    const Ref<Storage>& storage = saved.tensor.storage();
    if (storage.get() != saved.storage)
      throw GraphError(
          "backward: tensor {} saved by {} was given other storage since; run the forward again", i,
          op_.name);
    if (storage->version() != saved.version)
      throw GraphError(
          "backward: tensor {} of shape {}, saved by {}, was changed in place (version {}, saved "
          "at {}); clone it first",
          i, saved.tensor.shape(), op_.name, storage->version(), saved.version);
    if (saved.output < 0 || !is_grad_enabled()) return saved.tensor;
    const Tensor& y = saved.tensor;
    Tensor twin = detail::raw_view(y, y.shape(), y.strides(), y.offset());
    twin.impl().node = Ref<Node>(const_cast<OpNode*>(this));
    twin.impl().output_index = static_cast<uint32_t>(saved.output);
    return twin;
  }

  bool is_last_use(int i) const {
    const Saved* saved = saved_at(i);
    return saved && detail::sweep_frees_graph() && !is_grad_enabled() &&
           saved->tensor.impl().use_count() == 1 && saved->tensor.storage()->use_count() == 1;
  }

  OptionsRef options() const { return {options_, op_.options_type}; }

 private:
  struct Saved {
    Tensor tensor;
    const Storage* storage;
    uint32_t version;
    uint32_t place;  // in the order of saving, absent tensors counted
    int output;      // which result this is a twin of
  };

  void add_saved(Tensor&& t, uint32_t place, int output = -1) {
    const Storage* storage = t.storage().get();
    saved_.emplace_back(std::move(t), storage, storage->version(), place, output);
  }
  /// Null where an absent tensor was saved.
  const Saved* saved_at(int i) const {
    const auto place = static_cast<uint32_t>(i);
    const Saved* found =
        std::lower_bound(saved_.begin(), saved_.end(), place,
                         [](const Saved& saved, uint32_t wanted) { return saved.place < wanted; });
    return found != saved_.end() && found->place == place ? found : nullptr;
  }

  static bool is_input(const Tensor& t, const Call& call) {
    for (const Tensor* input : call.inputs)
      if (input->defined() && input->is_same(t)) return true;
    return false;
  }
  int output_index(const Tensor& t, const Call& call) const {
    for (size_t i = 0; i < call.outputs.size(); ++i)
      if (call.outputs[i].defined() && call.outputs[i].is_same(t)) return static_cast<int>(i);
    throw GraphError(
        "{}: save() takes inputs and outputs, but a tensor of shape {} is neither; a value that is "
        "not differentiated goes through save_constant()",
        op_.name, t.shape());
  }

  /// The derivative of define, taken at stand-ins for the saved inputs.
  Gradients backward_through_definition(const Gradients& grads) {
    const bool create_graph = is_grad_enabled();
    const EnableGrad recording;
    Gradients stand_ins(places_);
    SmallVector<const Tensor*, 8> pointers;
    for (size_t i = 0; i < places_; ++i) {
      const Edge edge = i < inputs.size() ? inputs[i] : Edge{};
      stand_ins[i] = detail::stand_in(saved(static_cast<int>(i)), edge, create_graph);
      pointers.push_back(&stand_ins[i]);
    }
    Call call{.inputs = {pointers.data(), pointers.size()}, .options = options_};
    if (op_.check) op_.check(call);
    op_.define(call);
    return detail::grad_within(call.outputs, stand_ins, grads, create_graph);
  }

  const OpInfo& op_;
  void* options_ = nullptr;
  SmallVector<Saved, 4> saved_;  // those that are there
  uint32_t places_ = 0, results_;
  bool released_ = false;
  DType autocast_ = Autocast::current();
};

bool Context::is_last_use(int i) const { return node_ && node_->is_last_use(i); }
Tensor Context::saved(int i) const {
  if (!node_) throw GraphError("{}: saved() belongs into backward, not forward", op_.name);
  return node_->saved(i);
}
std::optional<Tensor> Context::saved_optional(int i) const {
  Tensor t = saved(i);
  return t.defined() ? std::optional<Tensor>(std::move(t)) : none;
}
OptionsRef Context::options() const {
  return node_ ? node_->options() : OptionsRef(call_->options, op_.options_type);
}
bool Context::needs(int i) const {
  const auto index = static_cast<size_t>(i);
  if (node_) return index < node_->inputs.size() && node_->inputs[index].node;
  const Tensor& t = *call_->inputs[index];
  return recording_ && t.defined() && t.requires_grad();
}
const TensorSpec& Context::input(int i) const {
  const auto index = static_cast<size_t>(i);
  if (!node_) throw GraphError("{}: input() belongs into backward, not forward", op_.name);
  if (!needs(i)) throw GraphError("{}: input {} has no gradient, ask needs() first", op_.name, i);
  const Edge& edge = node_->inputs[index];
  return edge.node->outputs[edge.index];
}
const TensorSpec& Context::output() const {
  if (!call_ || !call_->output)
    throw GraphError("{}: output() needs a check that returns the result's spec", op_.name);
  return *call_->output;
}

namespace {

using Inputs = std::span<const Tensor* const>;

/// How many arguments there are up to the last that is not absent: ops with many mostly get few.
size_t count_given(Inputs inputs) {
  size_t n = inputs.size();
  while (n > 0 && !inputs[n - 1]->defined()) --n;
  return n;
}

bool any_requires_grad(Inputs inputs) {
  for (const Tensor* t : inputs)
    if (t->defined() && t->requires_grad()) return true;
  return false;
}

void require_one_device(const OpInfo& op, Inputs inputs) {
  const Tensor* first = nullptr;
  for (const Tensor* t : inputs) {
    if (!t->defined()) continue;
    if (!first) first = t;
    if (t->device() != first->device())
      throw DeviceError(
          "{}: arguments must be on one device, but are on {} and {}; move one with .to(device)",
          op.name, first->device(), t->device());
  }
}

/// Where the call runs and in which dtype: those of its first floating argument, else of its first.
const Tensor* leading_argument(const Call& call) {
  const Tensor* leading = nullptr;
  for (const Tensor* t : call.inputs) {
    if (!t->defined()) continue;
    if (is_floating(t->dtype())) return t;
    if (!leading) leading = t;
  }
  return leading;
}

bool has_kernel(const OpInfo& op, const Call& call) {
  if (!op.forward) return false;
  const Tensor* leading = op.runs_on ? leading_argument(call) : nullptr;
  return !leading || op.runs_on(leading->device(), leading->dtype());
}

/// A slow path is never taken silently; once an op, device and dtype is enough.
void say_that_no_kernel_fits(const OpInfo& op, const Call& call) {
  const Tensor* leading = leading_argument(call);
  if (!op.define)
    throw DTypeError("{}: there must be a kernel for {} on {}, but there is none", op.name,
                     to_string(leading->dtype()), leading->device());
  static std::mutex mutex;
  static auto* said = new std::set<std::string>;
  const std::string line =
      format("norma: {} has no kernel for {} on {}; its definition runs instead\n", op.name,
             to_string(leading->dtype()), leading->device());
  const std::lock_guard lock(mutex);
  if (said->insert(line).second) std::fputs(line.c_str(), stderr);
}

/// The arguments of a call as mixed precision wants them. Arguments of float64 stay: who computes
/// in it wants it.
class CastCall {
 public:
  CastCall(const OpInfo& op, Call& call) {
    DType target = op.cast_rule == CastRule::low ? Autocast::current() : float32;
    if (op.cast_rule == CastRule::widest) target = widest(call);
    for (size_t i = 0; i < call.inputs.size(); ++i) {
      const Tensor& t = *call.inputs[i];
      pointers_.push_back(&t);
      const uint32_t bit = uint32_t{1} << std::min<size_t>(i, 31);
      if (!(op.cast_arguments & bit) || !t.defined() || !is_floating(t.dtype()) ||
          t.dtype() == float64 || t.dtype() == target || target == float64)
        continue;
      cast_.push_back(t.to(target));
      places_.push_back(i);
    }
    for (size_t i = 0; i < places_.size(); ++i) pointers_[places_[i]] = &cast_[i];
    call.inputs = {pointers_.data(), pointers_.size()};
  }

 private:
  static DType widest(const Call& call) {
    std::optional<DType> found;
    for (const Tensor* t : call.inputs)
      if (t->defined() && is_floating(t->dtype()) && found != t->dtype())
        found = found ? (*found == float64 || t->dtype() == float64 ? float64 : float32)
                      : t->dtype();  // of bfloat16 and float16 neither holds the other
    return found.value_or(float64);
  }
  SmallVector<Tensor, 4> cast_;
  SmallVector<size_t, 4> places_;
  SmallVector<const Tensor*, 8> pointers_;
};

/// Whether result i carries no gradient. Only structs hold constants, and those have few fields: a
/// vector of results may be longer than the mask.
bool is_constant(const OpInfo& op, size_t i) { return i < 32 && (op.constants >> i & 1); }

Tensor without_history(const Tensor& t) {
  return detail::raw_view(t, t.shape(), t.strides(), t.offset());
}

void run_definition(const OpInfo& op, Call& call) {
  if (op.forward) say_that_no_kernel_fits(op, call);
  op.define(call);
  for (size_t i = 0; i < call.outputs.size(); ++i) {
    Tensor& y = call.outputs[i];
    if (is_constant(op, i) && y.defined() && y.requires_grad()) y = without_history(y);
  }
}

/// An output that is the very tensor of an argument gets a handle of its own before it gets a
/// history.
void separate_from_inputs(const OpInfo& op, Inputs inputs, Call& call) {
  for (size_t i = 0; i < call.outputs.size(); ++i) {
    Tensor& y = call.outputs[i];
    if (!y.defined() || is_constant(op, i) || y.impl().use_count() == 1)
      continue;  // the argument's own holder counts too
    for (const Tensor* x : inputs)
      if (x->defined() && y.is_same(*x)) y = without_history(y);
  }
}

/// The edges by which gradients leave; arguments behind the last that wants one need none.
Node::Edges edges_of(Inputs inputs) {
  Node::Edges edges;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Tensor& x = *inputs[i];
    if (!x.defined() || !x.requires_grad()) continue;
    if (edges.size() < i) edges.resize(i);  // those between want none
    edges.push_back(detail::edge_of(x));
  }
  return edges;
}

void attach(const OpInfo& op, Call& call, Ref<Node> node) {
  TensorImpl* last = nullptr;
  for (size_t i = 0; i < call.outputs.size(); ++i) {
    Tensor& y = call.outputs[i];
    if (!y.defined() || is_constant(op, i) || !is_floating(y.dtype())) continue;
    if (last) last->node = node;
    last = &y.impl();
    last->output_index = static_cast<uint32_t>(i);
    if (node->outputs.size() < i) node->outputs.resize(i);  // places of results without a gradient
    node->outputs.emplace_back(y.shape(), y.dtype(), y.device());
  }
  if (last) last->node = std::move(node);
}

}  // namespace

void apply_op(const OpInfo& op, Call& call) {
  for (Observer* o = Observer::current(); o; o = o->outer()) o->applying(op);
  const Running here(op);
  const size_t given = count_given(call.inputs);
  require_one_device(op, call.inputs.first(given));
  if (detail::captured_call) [[unlikely]]
    detail::require_capturable(op.name, call.inputs);
  if constexpr (kBuiltWithCuda)
    if (detail::side_pending) [[unlikely]]
      detail::join_side_for(call.inputs);
  std::optional<CastCall> cast;
  if (op.cast_rule != CastRule::keep && Autocast::current() != float32) cast.emplace(op, call);
  if (op.check) op.check(call);
  const Inputs inputs = call.inputs.first(given);
  if (!has_kernel(op, call)) {
    run_definition(op, call);
  } else if (!is_grad_enabled() || !any_requires_grad(inputs)) {
    Context ctx(op, &call, nullptr, false);
    const detail::KernelScope kernels;
    op.forward(ctx, call);
  } else {
    Context ctx(op, &call, nullptr, true);
    {
      const NoGrad kernels_are_not_recorded;
      const detail::KernelScope kernels;
      op.forward(ctx, call);
    }
    separate_from_inputs(op, inputs, call);
    auto* node = new OpNode(op, call, edges_of(inputs));
    auto owner = Ref<Node>::first(node);
    if (op.backward)
      node->save(ctx, call);
    else
      node->save_inputs(call);
    attach(op, call, std::move(owner));
  }
  for (Observer* o = Observer::current(); o; o = o->outer()) o->applied(op, call);
}

}  // namespace norma
