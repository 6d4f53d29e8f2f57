#include "norma/core/autograd.h"

#include <algorithm>
#include <array>
#include <optional>
#include <queue>
#include <string>
#include <utility>
#include <vector>

#include "norma/core/allocator.h"
#include "norma/core/autocast.h"
#include "norma/core/captured_call.h"
#include "norma/core/cuda/side_stream.h"
#include "norma/core/gradient_memory.h"
#include "norma/core/op.h"

namespace norma {
namespace {
// Trivially destructible: static tensors may die after the thread's other state.
struct ThreadState {
  bool grad_enabled = true;
  bool destroying = false;
  int sweeps = 0;              // that run, one inside the other
  int one_stream = 0;          // how many ask for it
  bool frees_graph = false;    // the running sweep does
  bool records_sweep = false;  // the running one is recorded itself
  uint64_t sequence = 0;
  Node* dead = nullptr;
};
thread_local constinit ThreadState state;

/// A run of columns of dense rows.
struct Part {
  int64_t rows, width, begin, end;
};
/// What x is of the rows that fill its storage, where it is a part of them.
std::optional<Part> part_of(const Tensor& x) {
  int64_t run = 1, rows = 1, width = 0;
  for (int i = x.dim() - 1; i >= 0; --i) {
    if (x.shape()[i] == 1) continue;
    if (width == 0 && x.strides()[i] == run) {
      run *= x.shape()[i];
      continue;
    }
    if (width == 0) width = x.strides()[i];
    if (x.strides()[i] != width * rows) return none;
    rows *= x.shape()[i];
  }
  const bool fills = x.storage()->bytes() == rows * width * size_of(x.dtype());
  if (!fills || x.offset() + run > width || rows * run == 0) return none;
  return Part{rows, width, x.offset(), x.offset() + run};
}

/// Where the gradients of a storage's parts are put, and which parts have got their place.
struct JointGradient {
  const Storage* parts_of;
  Tensor whole;  // (rows, width)
  std::vector<std::pair<int64_t, int64_t>> given = {};

  bool take(const Part& part) {
    for (const auto& [begin, end] : given)
      if (part.begin < end && begin < part.end) return false;
    given.emplace_back(part.begin, part.end);
    return true;
  }
  bool is_full() const {
    int64_t columns = 0;
    for (const auto& [begin, end] : given) columns += end - begin;
    return columns == whole.shape()[1];
  }
};
/// Those of the running sweep that are not full: the last few, which others push out.
constexpr size_t kMostJoint = 4;
thread_local std::vector<JointGradient> joint_gradients;

JointGradient& joint_gradient(const Tensor& x, const Part& part) {
  for (JointGradient& joint : joint_gradients)
    if (joint.parts_of == x.storage().get() && joint.whole.dtype() == x.dtype() &&
        joint.whole.shape() == Shape{part.rows, part.width})
      return joint;
  if (joint_gradients.size() == kMostJoint) joint_gradients.erase(joint_gradients.begin());
  return joint_gradients.emplace_back(
      JointGradient{x.storage().get(), empty({part.rows, part.width}, x.dtype(), x.device())});
}
}  // namespace

namespace detail {
bool sweep_joins() { return state.sweeps > 0 && state.one_stream == 0; }
OneStream::OneStream() { ++state.one_stream; }
OneStream::~OneStream() { --state.one_stream; }
}  // namespace detail

bool is_grad_enabled() { return state.grad_enabled; }
bool detail::sweep_frees_graph() { return state.frees_graph; }

Tensor detail::empty_gradient(const Tensor& x) {
  const std::optional<Part> part = state.sweeps == 0 || state.records_sweep ? none : part_of(x);
  if (!part) return empty(x.spec());
  JointGradient& joint = joint_gradient(x, *part);
  if (!joint.take(*part)) return empty(x.spec());
  const Tensor own = raw_view(joint.whole, x.shape(), x.strides(), x.offset());
  if (joint.is_full())
    joint_gradients.erase(joint_gradients.begin() + (&joint - joint_gradients.data()));
  return own;
}
GradMode::GradMode(bool enabled) : before_(state.grad_enabled) { state.grad_enabled = enabled; }
GradMode::~GradMode() { state.grad_enabled = before_; }

void Node::destroy(Node* node) {
  node->next_dead_ = state.dead;
  state.dead = node;
  if (state.destroying) return;  // an outer call takes it from the list
  state.destroying = true;
  while (state.dead) {
    Node* next = state.dead;
    state.dead = next->next_dead_;
    delete next;
  }
  state.destroying = false;
}

void* Node::operator new(size_t bytes) { return norma::allocate(bytes); }
void Node::operator delete(void* p, size_t bytes) { norma::deallocate(p, bytes); }

Node::Gradients Leaf::backward(Gradients grads) {
  if (grads[0].defined()) accumulate(std::move(grads[0]));
  return {};
}

namespace {
/// Objects that stay where they are while more are made; their memory comes from the thread's
/// blocks.
template <class T>
class Pool {
 public:
  Pool() = default;
  ~Pool() {
    while (size_ > 0) at(--size_).~T();
    for (T* chunk : chunks_) deallocate(chunk, kInChunk * sizeof(T));
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  size_t size() const { return size_; }
  T& at(size_t i) { return chunks_[i / kInChunk][i % kInChunk]; }
  T& add() {
    if (size_ == chunks_.size() * kInChunk)
      chunks_.push_back(static_cast<T*>(allocate(kInChunk * sizeof(T))));
    T* made = new (&at(size_)) T();
    ++size_;
    return *made;
  }

 private:
  static constexpr size_t kInChunk = 32;
  SmallVector<T*, 8> chunks_;
  size_t size_ = 0;
};

std::string described(const TensorSpec& spec) {
  return format("{} {} on {}", to_string(spec.dtype), spec.shape, spec.device);
}

/// Before someone reads a gradient that a second stream may still be at work on.
void join_side_stream() {
  if constexpr (kBuiltWithCuda)
    if (detail::side_pending) detail::join_side();
}
/// The same, where it is at work on one of the two.
void join_side_stream_for(const Tensor& a, const Tensor& b) {
  if constexpr (kBuiltWithCuda)
    if (detail::side_pending) detail::join_side_for(std::array{&a, &b});
}
}  // namespace

void Leaf::accumulate(Tensor value) {
  if (value.spec() != outputs[0])
    throw GraphError("grad: must be {}, like its tensor, but is {}", described(outputs[0]),
                     described(value.spec()));
  if (!value.requires_grad() && detail::gradient_stays(*this)) {
    join_side_stream();
    const NoGrad plain;
    grad.add_(value);
    return;
  }
  if (grad.defined()) {
    join_side_stream();
    grad = detail::add_gradients(std::move(grad), value);
    return;
  }
  const bool ours =
      value.is_dense() && value.impl().use_count() == 1 && value.storage()->use_count() == 1;
  if (ours || is_grad_enabled()) {
    grad = std::move(value);
  } else {
    join_side_stream();
    grad = empty_like(value);
    detail::copy_elements(value, grad);
  }
  detail::label_gradient(grad);
}

namespace detail {

Edge edge_of(const Tensor& t) {
  TensorImpl& impl = t.impl();
  if (!impl.node && impl.requires_grad) impl.node = Ref<Node>::first(new Leaf(t.spec()));
  return {impl.node, impl.output_index};
}

uint64_t next_sequence(std::span<const Edge> inputs) {
  uint64_t sequence = state.sequence;
  for (const Edge& edge : inputs)
    if (edge.node) sequence = std::max(sequence, edge.node->sequence);
  return state.sequence = sequence + 1;
}

namespace {
/// The one differentiable op that core has of its own.
struct AddGradients {
  static constexpr std::string_view name = "add_gradients";
  struct Grads {
    Tensor da, db;
  };
  static Tensor forward(Context&, const Tensor& a, const Tensor& b) {
    Tensor sum = empty_like(a);
    copy_elements(a, sum);
    sum.add_(b);
    return sum;
  }
  static Grads backward(Context&, const Tensor& dy) { return {dy, dy}; }
};
}  // namespace

// By value: whether nobody else holds `a` decides.
Tensor add_gradients(Tensor a, const Tensor& b) {  // NOLINT(performance-unnecessary-value-param)
  if (is_grad_enabled() && (a.requires_grad() || b.requires_grad()))
    return apply<AddGradients>(a, b);
  const bool ours = a.is_dense() && a.impl().use_count() == 1 && a.storage()->use_count() == 1;
  const NoGrad guard;
  return ours ? a.add_(b) : apply<AddGradients>(a, b);
}

}  // namespace detail

/// One run through the graph, newest node first. Every node waits until all later ones have run;
/// numbers grow along every edge, so a heap on them needs no count of dependencies.
class Sweep {
 public:
  enum class Until { leaves, wanted, cuts };  // cuts: wanted nodes are not passed

  Sweep(const BackwardOptions& options, Until until)
      : create_(options.create_graph),
        retain_(options.retain_graph || options.create_graph),
        until_(until) {}
  ~Sweep() {
    for (size_t i = entries_.size(); i-- > 0;) forget(entries_.at(i));
  }
  Sweep(const Sweep&) = delete;
  Sweep& operator=(const Sweep&) = delete;

  void add(const Edge& edge, Tensor grad) {
    Entry* known = find(*edge.node);
    if (pruned_ && !(known && known->needed)) {
      join_side_stream_for(grad, grad);  // its memory is someone else's from here on
      return;
    }
    Entry& entry = known ? *known : entry_of(edge.node);
    if (entry.grads.empty()) {
      entry.grads.resize(edge.node->outputs.size());
      heap_.push({edge.node->sequence, &entry});
    }
    Tensor& slot = entry.grads[edge.index];
    if (slot.defined()) join_side_stream_for(slot, grad);
    slot = slot.defined() ? detail::add_gradients(std::move(slot), grad) : std::move(grad);
  }

  /// Asks for the gradient that arrives at this edge.
  void want(const Edge& edge, size_t slot) {
    Entry* known = find(*edge.node);
    Entry& entry = known ? *known : entry_of(edge.node);
    entry.wanted = entry.needed = true;
    wanted_.push_back({edge, slot});
  }
  std::vector<Tensor>& found() { return found_; }

  /// From now on the sweep leaves out what leads from the outputs to no wanted node.
  void prune(const std::vector<Tensor>& outputs) {
    struct Visit {
      Entry* entry;
      size_t next = 0;
    };
    std::vector<Visit> path;  // a node after all that it depends on, without recursion
    const auto enter = [&](const Ref<Node>& node) {
      Entry* known = find(*node);
      Entry& entry = known ? *known : entry_of(node);
      if (!std::exchange(entry.visited, true)) path.push_back({&entry});
      return &entry;
    };
    for (const Tensor& y : outputs) {
      if (y.impl().node) enter(y.impl().node);
      while (!path.empty()) {
        Visit& here = path.back();
        Entry& entry = *here.entry;
        const Node::Edges& inputs = entry.node->inputs;
        if (here.next < inputs.size()) {
          if (const Ref<Node>& input = inputs[here.next++].node)
            entry.leads_on |= enter(input)->needed;
          continue;
        }
        path.pop_back();
        entry.needed |= entry.leads_on;
        if (!path.empty()) path.back().entry->leads_on |= entry.needed;
      }
    }
    pruned_ = true;
  }

  void run() {
    size_t slots = 0;
    for (const Wanted& wanted : wanted_) slots = std::max(slots, wanted.slot + 1);
    found_.resize(slots);
    const GradMode mode(create_);
    const Running running(create_);
    while (!heap_.empty()) {
      Entry* entry = heap_.top().entry;
      heap_.pop();
      step(*entry);
    }
    if (state.sweeps == 1) join_side_stream();
  }

 private:
  struct Running {
    explicit Running(bool records) : before_(std::exchange(state.records_sweep, records)) {
      ++state.sweeps;
    }
    ~Running() {
      state.records_sweep = before_;
      if (--state.sweeps == 0) joint_gradients.clear();
    }
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;

   private:
    bool before_;
  };
  /// What a sweep knows of a node.
  struct Entry {
    Sweep* sweep = nullptr;
    void* before = nullptr;  // an outer sweep's entry of the same node, put back afterwards
    Ref<Node> node = {};
    Node::Gradients grads = {};  // none before the first arrives
    bool wanted = false;
    bool visited = false;   // by prune, which also finds out whether
    bool leads_on = false;  // an input of it is needed, and whether
    bool needed = false;    // it is wanted or leads on
  };
  struct Item {
    uint64_t sequence;
    Entry* entry;
    bool operator<(const Item& other) const { return sequence < other.sequence; }
  };
  struct Wanted {
    Edge edge;
    size_t slot;
  };

  Entry* find(const Node& node) const {
    auto* pending = static_cast<Entry*>(node.pending_);
    return pending && pending->sweep == this ? pending : nullptr;
  }
  Entry& entry_of(const Ref<Node>& node) {
    Entry* entry = unused_.empty() ? &entries_.add() : unused_.back();
    if (!unused_.empty()) unused_.pop_back();
    *entry = Entry{this, node->pending_, node};
    node->pending_ = entry;
    return *entry;
  }

  static Ref<Node> forget(Entry& entry) {
    if (entry.node && entry.node->pending_ == &entry) entry.node->pending_ = entry.before;
    return std::exchange(entry.node, {});
  }

  /// Tells the node that runs whether it is freed afterwards.
  class Freeing {
   public:
    explicit Freeing(bool on) : before_(std::exchange(state.frees_graph, on)) {}
    ~Freeing() { state.frees_graph = before_; }
    Freeing(const Freeing&) = delete;
    Freeing& operator=(const Freeing&) = delete;

   private:
    bool before_;
  };

  void step(Entry& entry) {
    Node::Gradients grads = std::move(entry.grads);
    const bool wanted_here = entry.wanted, leads_on = !pruned_ || entry.leads_on;
    const Ref<Node> node = forget(entry);
    unused_.push_back(&entry);
    for (auto& [index, hook] : node->hooks) {
      if (!grads[index].defined()) continue;
      join_side_stream();
      std::optional<Tensor> replaced = hook(grads[index]);
      if (!replaced) continue;
      if (replaced->spec() != grads[index].spec())
        throw GraphError(
            "register_hook: a hook must return a gradient like its own, {}, but gave {}",
            described(grads[index].spec()), described(replaced->spec()));
      grads[index] = *std::move(replaced);
    }
    if (wanted_here) {
      for (const Wanted& wanted : wanted_)
        if (wanted.edge.node == node) found_[wanted.slot] = grads[wanted.edge.index];
      if (until_ == Until::cuts) return;
    }
    if (!leads_on) return;
    if (node->inputs.empty()) {
      if (until_ == Until::leaves) node->backward(std::move(grads));
      return;
    }
    Node::Gradients results = [&] {
      const Freeing mode(!retain_);
      const Autocast off(float32);  // gradients have their own dtypes, in a scope or out of it
      return node->backward(std::move(grads));
    }();
    if (!retain_) node->release_saved();
    for (Observer* o = Observer::current(); o; o = o->outer()) o->differentiated(*node, results);
    const size_t n = std::min(node->inputs.size(), results.size());
    for (size_t i = 0; i < n; ++i)
      if (node->inputs[i].node && results[i].defined()) add(node->inputs[i], std::move(results[i]));
  }

  bool create_, retain_, pruned_ = false;
  Until until_;
  Pool<Entry> entries_;
  std::vector<Entry*> unused_;
  std::priority_queue<Item> heap_;
  std::vector<Wanted> wanted_;
  std::vector<Tensor> found_;
};

namespace {

void seed(Sweep& sweep, const std::vector<Tensor>& outputs,
          const std::vector<std::optional<Tensor>>& grad_outputs) {
  if (!grad_outputs.empty() && grad_outputs.size() != outputs.size())
    throw GraphError("backward: each of the {} outputs needs a gradient, but {} came",
                     outputs.size(), grad_outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Tensor& y = outputs[i];
    if (!y.requires_grad())
      throw GraphError(
          "backward: output {} must depend on a tensor that requires a gradient, but has no "
          "history; call requires_grad_() on an input first",
          i);
    if (!grad_outputs.empty() && grad_outputs[i]) {
      if (grad_outputs[i]->spec() != y.spec())
        throw ShapeError("backward: the gradient of output {} must be {}, but is {}", i,
                         described(y.spec()), described(grad_outputs[i]->spec()));
      sweep.add(detail::edge_of(y), *grad_outputs[i]);
    } else if (y.numel() == 1) {
      sweep.add(detail::edge_of(y), ones_like(y));
    } else {
      throw GraphError(
          "backward: output {} must have one element where no gradient is given, but has shape {}; "
          "pass one, or reduce it with sum()",
          i, y.shape());
    }
  }
}

}  // namespace

std::vector<Tensor> grad(const std::vector<Tensor>& outputs, const std::vector<Tensor>& inputs,
                         const std::vector<std::optional<Tensor>>& grad_outputs,
                         const BackwardOptions& options) {
  Sweep sweep(options, Sweep::Until::wanted);
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].requires_grad())
      throw GraphError(
          "grad: input {} must require a gradient, but does not; call requires_grad_() before it "
          "is used",
          i);
    sweep.want(detail::edge_of(inputs[i]), i);
  }
  sweep.prune(outputs);
  seed(sweep, outputs, grad_outputs);
  sweep.run();
  std::vector<Tensor> found = std::move(sweep.found());
  for (size_t i = 0; i < inputs.size(); ++i)
    if (!found[i].defined()) found[i] = zeros_like(inputs[i]);
  return found;
}

void backward(const std::vector<Tensor>& outputs,
              const std::vector<std::optional<Tensor>>& grad_outputs,
              const BackwardOptions& options) {
  Sweep sweep(options, Sweep::Until::leaves);
  seed(sweep, outputs, grad_outputs);
  sweep.run();
}

namespace detail {
Node::Gradients grad_within(const Node::Gradients& outputs, const Node::Gradients& inputs,
                            const Node::Gradients& grad_outputs, bool create_graph) {
  Sweep sweep({.create_graph = create_graph}, Sweep::Until::cuts);
  for (size_t i = 0; i < inputs.size(); ++i)
    if (inputs[i].defined() && inputs[i].requires_grad()) sweep.want(edge_of(inputs[i]), i);
  for (size_t i = 0; i < outputs.size(); ++i)
    if (i < grad_outputs.size() && grad_outputs[i].defined() && outputs[i].requires_grad())
      sweep.add(edge_of(outputs[i]), grad_outputs[i]);
  sweep.run();
  Node::Gradients found(inputs.size());
  for (size_t i = 0; i < sweep.found().size(); ++i) found[i] = std::move(sweep.found()[i]);
  return found;
}
}  // namespace detail

// Tensor's part of it.

bool Tensor::requires_grad() const {
  const TensorImpl& t = impl();
  return t.requires_grad || (t.node && !t.node->inputs.empty());
}
bool Tensor::is_leaf() const { return !impl().node || impl().node->inputs.empty(); }

const Tensor& Tensor::requires_grad_(bool on) const {
  if (!is_leaf())
    throw GraphError(
        "requires_grad_: the tensor must be a leaf, but an operation made it; detach() it first");
  if (on && !is_floating(dtype()))
    throw DTypeError("requires_grad_: the tensor must be floating, but is {}", to_string(dtype()));
  impl().requires_grad = on;
  if (!on) impl().node.reset();
  return *this;
}

bool Tensor::has_grad() const {
  const auto* leaf = is_leaf() ? static_cast<const Leaf*>(impl().node.get()) : nullptr;
  return leaf && leaf->grad.defined();
}
Tensor Tensor::grad() const {
  if (!has_grad())
    throw GraphError(
        "grad: there must have been a backward() that reaches this {} tensor, but its grad is "
        "empty",
        is_leaf() ? "leaf" : "intermediate");
  auto* leaf = static_cast<Leaf*>(impl().node.get());
  detail::gradient_stays(*leaf);
  return leaf->grad;
}
void Tensor::clear_grad() const {
  if (has_grad()) static_cast<Leaf*>(impl().node.get())->grad = Tensor();
}
void Tensor::set_grad(const Tensor& value) const {
  if (!is_leaf() || !requires_grad())
    throw GraphError("set_grad: the tensor must be a leaf that requires a gradient");
  if (value.spec() != spec())  // before the old one goes
    throw GraphError("set_grad: the gradient must be {}, like its tensor, but is {}",
                     described(spec()), described(value.spec()));
  const Edge edge = detail::edge_of(*this);
  clear_grad();
  static_cast<Leaf*>(edge.node.get())->accumulate(value);
}
void Tensor::backward() const { norma::backward({*this}); }
void Tensor::backward(const Tensor& grad_output) const { norma::backward({*this}, {grad_output}); }

Tensor Tensor::detach() const { return detail::raw_view(*this, shape(), strides(), offset()); }

void Tensor::register_hook(Hook hook) const {
  if (!requires_grad())
    throw GraphError("register_hook: the tensor must require a gradient, but does not");
  const Edge edge = detail::edge_of(*this);
  edge.node->hooks.emplace_back(edge.index, std::move(hook));
}

namespace {

/// y = x, a node of its own: where a nested sweep ends.
class CutNode final : public Node {
 public:
  explicit CutNode(Edges&& edges)
      : Node(detail::next_sequence({edges.data(), edges.size()}), std::move(edges)) {}
  std::string_view name() const override { return "cut"; }
  Gradients backward(Gradients grads) override { return grads; }
};

}  // namespace

namespace detail {
Tensor stand_in(const Tensor& input, const Edge& edge, bool create_graph) {
  if (!input.defined() || !edge.node) return input;
  if (!create_graph) return input.detach().requires_grad_();
  Node::Edges edges;
  edges.push_back(edge);
  auto node = Ref<Node>::first(new CutNode(std::move(edges)));
  node->outputs.push_back(input.spec());
  Tensor twin = raw_view(input, input.shape(), input.strides(), input.offset());
  twin.impl().node = std::move(node);
  return twin;
}
}  // namespace detail

}  // namespace norma
