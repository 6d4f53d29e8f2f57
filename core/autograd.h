#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "norma/core/small_vector.h"
#include "norma/core/tensor.h"

namespace norma {

class Node;
class Sweep;

/// Where a gradient goes: result `index` of `node`.
struct Edge {
  Ref<Node> node;
  uint32_t index = 0;
};

/// One step of the recorded computation. A tensor made under recording holds the node that made
/// it, a node holds the nodes of its inputs: the graph lives exactly as long as someone needs it.
class Node : public RefCounted {
 public:
  using Gradients = SmallVector<Tensor, 8>;  // an undefined tensor stands for an absent gradient
  using Edges = SmallVector<Edge, 5>;

  Node(uint64_t number, Edges&& edges) : sequence(number), inputs(std::move(edges)) {}
  virtual ~Node() = default;

  virtual std::string_view name() const = 0;
  /// The gradients of the inputs, given those of the results. Differentiable where recording is on.
  virtual Gradients backward(Gradients grads) = 0;
  /// Lets go of what was saved for backward; a second sweep is then an error.
  virtual void release_saved() {}

  /// Deletes without recursion: a chain of any length is taken apart in a loop.
  static void destroy(Node* node);

  static void* operator new(size_t bytes);
  static void operator delete(void* p, size_t bytes);

  const uint64_t sequence;             ///< larger than that of every node this one depends on
  Edges inputs;                        ///< up to the last input that wants a gradient
  SmallVector<TensorSpec, 1> outputs;  ///< up to the last result that may get one
  std::vector<std::pair<uint32_t, Tensor::Hook>> hooks;  ///< result index and what to call

 private:
  friend class Sweep;
  void* pending_ = nullptr;    // the running sweep's entry for this node
  Node* next_dead_ = nullptr;  // list of nodes being destroyed
};

/// The node of a tensor that the user made and wants a gradient of. It holds .grad.
class Leaf final : public Node {
 public:
  explicit Leaf(const TensorSpec& spec) : Node(0, {}) { outputs.push_back(spec); }
  std::string_view name() const override { return "leaf"; }
  Gradients backward(Gradients grads) override;
  /// Adds to .grad. Takes the buffer itself only if it is dense and nobody else holds it.
  void accumulate(Tensor grad);

  Tensor grad;
};

/// Whether operations are recorded on this thread.
bool is_grad_enabled();
/// While one lives, nothing is recorded (NoGrad) or everything is (EnableGrad).
class GradMode {
 public:
  explicit GradMode(bool enabled);
  ~GradMode();
  GradMode(const GradMode&) = delete;
  GradMode& operator=(const GradMode&) = delete;

 private:
  bool before_;
};
struct NoGrad : GradMode {
  NoGrad() : GradMode(false) {}
};
struct EnableGrad : GradMode {
  EnableGrad() : GradMode(true) {}
};

struct BackwardOptions {
  bool retain_graph = false;  ///< keep what was saved, for another sweep
  bool create_graph = false;  ///< record the sweep itself, for higher derivatives; implies retain
};

/// d(Σ outputs ⊙ grad_outputs)/d(inputs), without touching any .grad. An absent grad_output is 1,
/// for one-element outputs only. An input that the outputs do not depend on gets zeros. What leads
/// to no input is not run, nor are its hooks.
/// Throws GraphError where an output has no history or a graph was freed.
std::vector<Tensor> grad(const std::vector<Tensor>& outputs, const std::vector<Tensor>& inputs,
                         const std::vector<std::optional<Tensor>>& grad_outputs = {},
                         const BackwardOptions& options = {});

/// Adds d(Σ outputs ⊙ grad_outputs)/d(leaf) to every leaf's .grad.
void backward(const std::vector<Tensor>& outputs,
              const std::vector<std::optional<Tensor>>& grad_outputs = {},
              const BackwardOptions& options = {});

namespace detail {
/// The edge by which t's gradient leaves: its node, or the leaf made on first need.
Edge edge_of(const Tensor& t);
/// grad() for one local piece of a graph: the sweep ends at the inputs and runs no hook of theirs.
/// Absent gradients stay undefined.
Node::Gradients grad_within(const Node::Gradients& outputs, const Node::Gradients& inputs,
                            const Node::Gradients& grad_outputs, bool create_graph);
/// What a nested sweep takes for an input, and where it ends: a leaf of its values, or, while the
/// outer sweep is itself recorded, an identity op on it, so that the gradient's history leads back.
Tensor stand_in(const Tensor& input, const Edge& edge, bool create_graph);
/// Whether the node that runs now in this thread's sweep is freed when it is done.
bool sweep_frees_graph();
/// A number after every input's and every earlier one of this thread.
uint64_t next_sequence(std::span<const Edge> inputs);
/// a + b, differentiable: what the sweep needs where a tensor was used twice. `a` is written in
/// place where the sweep holds its last reference and nothing records.
Tensor add_gradients(Tensor a, const Tensor& b);
}  // namespace detail

}  // namespace norma
