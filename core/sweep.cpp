// The run of a graph from its outputs to its leaves: backward(), grad() and the sweeps within an
// op.
#include <algorithm>
#include <array>
#include <optional>
#include <queue>
#include <utility>
#include <vector>

#include "norma/core/allocator.h"
#include "norma/core/autocast.h"
#include "norma/core/autograd.h"
#include "norma/core/cuda/side_stream.h"
#include "norma/core/gradient_memory.h"
#include "norma/core/op.h"

namespace norma {
namespace {
thread_local constinit bool frees_graph = false;  // the running sweep does
thread_local constinit int one_stream = 0;        // how many ask for it

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

/// Before someone reads a or b, where a second stream is still at work on it.
void join_side_stream_for(const Tensor& a, const Tensor& b) {
  if constexpr (kBuiltWithCuda)
    if (detail::side_pending) detail::join_side_for(std::array{&a, &b});
}
}  // namespace

namespace detail {
bool sweep_joins() { return running_sweeps() > 0 && one_stream == 0; }
OneStream::OneStream() { ++one_stream; }
OneStream::~OneStream() { --one_stream; }
bool sweep_frees_graph() { return frees_graph; }
}  // namespace detail

namespace {
/// What the innermost sweep of this thread runs.
struct Stepping {
  Sweep* sweep = nullptr;
  const Node* node = nullptr;
};
thread_local constinit Stepping stepping;
}  // namespace

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

  /// What take_gradient gives to `node`.
  Tensor take(const Node& node, size_t input) {
    if (create_ || input >= node.inputs.size() || !node.inputs[input].node) return {};
    const Edge& edge = node.inputs[input];
    Entry* entry = find(*edge.node);
    if (!entry || entry->grads.empty()) return {};
    Tensor& arrived = entry->grads[edge.index];
    if (!arrived.defined() || !detail::is_only_holder(arrived)) return {};
    join_side_stream_for(arrived, arrived);
    return std::exchange(arrived, {});
  }

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
    const detail::RunningSweep running(create_);
    detail::count_write();  // what was saved before may be read early (core/cuda/early.h)
    while (!heap_.empty()) {
      Entry* entry = heap_.top().entry;
      heap_.pop();
      step(*entry);
    }
    if (detail::running_sweeps() == 1) detail::join_side_stream();
  }

 private:
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

  /// Tells the node that runs whose step it is, and whether it is freed afterwards.
  class Running {
   public:
    Running(Sweep* sweep, const Node* node, bool frees)
        : frees_before_(std::exchange(frees_graph, frees)),
          stepping_before_(std::exchange(stepping, {sweep, node})) {}
    ~Running() { frees_graph = frees_before_, stepping = stepping_before_; }
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;

   private:
    bool frees_before_;
    Stepping stepping_before_;
  };

  void step(Entry& entry) {
    Node::Gradients grads = std::move(entry.grads);
    const bool wanted_here = entry.wanted, leads_on = !pruned_ || entry.leads_on;
    const Ref<Node> node = forget(entry);
    unused_.push_back(&entry);
    const auto hooks = node->hooks;  // one that registers another is not moved while it runs
    for (const auto& [index, hook] : hooks) {
      if (!grads[index].defined()) continue;
      detail::join_side_stream();
      std::optional<Tensor> replaced = hook(grads[index]);
      if (!replaced) continue;
      if (replaced->spec() != grads[index].spec())
        throw GraphError(
            "register_hook: a hook must return a gradient like its own, {}, but gave {}",
            to_string(grads[index].spec()), to_string(replaced->spec()));
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
      const Running mode(this, node.get(), !retain_);
      const Autocast off(float32);  // gradients have their own dtypes, in a scope or out of it
      return node->backward(std::move(grads));
    }();
    if (!retain_) node->release_saved();
    for (Observer* o = Observer::current(); o; o = o->outer()) o->differentiated(*node, results);
    for (size_t i = 0; i < results.size(); ++i) {
      if (!results[i].defined()) continue;
      if (i < node->inputs.size() && node->inputs[i].node)
        add(node->inputs[i], std::move(results[i]));
      else
        join_side_stream_for(results[i], results[i]);  // nobody wants it: its memory goes
    }
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
                         to_string(y.spec()), to_string(grad_outputs[i]->spec()));
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
Tensor take_gradient(int i) {
  return stepping.sweep ? stepping.sweep->take(*stepping.node, static_cast<size_t>(i)) : Tensor();
}
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
}  // namespace norma
