#include "norma/core/autograd.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "norma/core/allocator.h"
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
  uint64_t sequence = 0;
  Node* dead = nullptr;
};
thread_local constinit ThreadState state;
}  // namespace

bool is_grad_enabled() { return state.grad_enabled; }

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

void Leaf::accumulate(Tensor value) {
  if (value.spec() != outputs[0])
    throw GraphError("grad: must be {}, like its tensor, but is {}", to_string(outputs[0]),
                     to_string(value.spec()));
  if (!value.requires_grad() && detail::gradient_stays(*this)) {
    detail::join_side_stream();
    const NoGrad plain;
    grad.add_(value);
    return;
  }
  if (grad.defined()) {
    detail::join_side_stream();
    grad = detail::add_gradients(std::move(grad), value);
    return;
  }
  if (detail::is_only_holder(value) || is_grad_enabled()) {
    grad = std::move(value);
  } else {
    detail::join_side_stream();
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

bool is_only_holder(const Tensor& t) {
  return t.is_dense() && t.impl().use_count() == 1 && t.storage()->use_count() == 1;
}

// By value: whether nobody else holds `a` decides.
Tensor add_gradients(Tensor a, const Tensor& b) {  // NOLINT(performance-unnecessary-value-param)
  if (is_grad_enabled() && (a.requires_grad() || b.requires_grad()))
    return apply<AddGradients>(a, b);
  const NoGrad guard;
  return is_only_holder(a) ? a.add_(b) : apply<AddGradients>(a, b);
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
  if (on)
    detail::edge_of(*this);  // now: threads that share it later would make a leaf each
  else
    impl().node.reset();
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
                     to_string(spec()), to_string(value.spec()));
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
