#include "norma/core/checkpoint.h"

#include <set>
#include <utility>

#include "norma/core/autocast.h"
#include "norma/core/autograd.h"
#include "norma/core/random.h"

namespace norma {
namespace {

using Function = std::function<std::vector<Tensor>(const std::vector<Tensor>&)>;

/// Runs with the random numbers of another time, then goes on with those of now.
class RandomReplay {
 public:
  explicit RandomReplay(const GeneratorState& then) : now_(ambient_generator().state()) {
    ambient_generator().set_state(then);
  }
  ~RandomReplay() { ambient_generator().set_state(now_); }
  RandomReplay(const RandomReplay&) = delete;
  RandomReplay& operator=(const RandomReplay&) = delete;

 private:
  GeneratorState now_;
};

/// The edges by which the graph of `outputs` leaves what was recorded since number `first`: tensors
/// that f reached by reference. `own` are the leaves of the stand-ins.
std::vector<Edge> outside_edges(const std::vector<Tensor>& outputs, uint64_t first,
                                const std::set<const Node*>& own) {
  std::vector<Edge> outside;
  std::set<std::pair<const Node*, uint32_t>> seen;
  std::vector<Edge> open;
  for (const Tensor& y : outputs)
    if (y.defined() && y.requires_grad()) open.push_back(detail::edge_of(y));
  while (!open.empty()) {
    const Edge edge = open.back();
    open.pop_back();
    if (!edge.node || own.contains(edge.node.get())) continue;
    if (!seen.insert({edge.node.get(), edge.index}).second) continue;
    if (edge.node->sequence < first) {
      outside.push_back(edge);
      continue;
    }
    for (const Edge& input : edge.node->inputs) open.push_back(input);
  }
  return outside;
}

/// A tensor without values that stands for what an edge leads to.
Tensor marker(const Edge& edge) {
  const TensorSpec& spec = edge.node->outputs[edge.index];
  const Tensor t = empty(Shape{}, spec.dtype, spec.device);
  t.impl().node = edge.node;
  t.impl().output_index = edge.index;
  t.impl().requires_grad = edge.node->inputs.empty();  // a leaf asks by itself
  return t;
}

class CheckpointNode final : public Node {
 public:
  CheckpointNode(Function f, std::vector<Tensor> arguments, const GeneratorState& random,
                 Edges&& edges)
      : Node(detail::next_sequence({edges.data(), edges.size()}), std::move(edges)),
        f_(std::move(f)),
        arguments_(std::move(arguments)),
        random_(random) {
    for (const Tensor& t : arguments_) versions_.push_back(t.storage()->version());
  }
  std::string_view name() const override { return "checkpoint"; }
  void release_saved() override { arguments_.clear(), f_ = nullptr; }

  Gradients backward(Gradients grads) override {
    if (!f_)
      throw GraphError(
          "backward: the graph must still be there, but what checkpoint saved was freed by an "
          "earlier sweep; pass .retain_graph = true to that one");
    const bool create_graph = is_grad_enabled();
    const EnableGrad recording;
    const RandomReplay replay(random_);
    const Autocast as_in_forward(autocast_);
    Gradients wanted;
    std::vector<Tensor> stand_ins;
    for (size_t i = 0; i < arguments_.size(); ++i) {
      if (arguments_[i].storage()->version() != versions_[i])
        throw GraphError(
            "backward: input {} of checkpoint, of shape {}, was changed in place; clone it first",
            i, arguments_[i].shape());
      stand_ins.push_back(detail::stand_in(arguments_[i], inputs[i], create_graph));
      wanted.push_back(inputs[i].node ? stand_ins.back() : Tensor());
    }
    for (size_t i = arguments_.size(); i < inputs.size(); ++i) wanted.push_back(marker(inputs[i]));
    Gradients results;
    for (const Tensor& y : f_(stand_ins)) results.push_back(y);
    return detail::grad_within(results, wanted, grads, create_graph);
  }

 private:
  Function f_;
  std::vector<Tensor> arguments_;
  std::vector<uint32_t> versions_;
  GeneratorState random_;
  DType autocast_ = Autocast::current();
};

}  // namespace

std::vector<Tensor> checkpoint(const Function& f, const std::vector<Tensor>& inputs) {
  if (!is_grad_enabled()) return f(inputs);
  const GeneratorState random = ambient_generator().state();
  const uint64_t first = detail::next_sequence({});
  // The first run is recorded only to see what it reaches; that record dies with this scope.
  std::vector<Tensor> stand_ins, outputs;
  std::set<const Node*> own;
  Node::Edges edges;
  for (const Tensor& x : inputs) {
    const bool variable = x.requires_grad();
    edges.push_back(variable ? detail::edge_of(x) : Edge{});
    stand_ins.push_back(variable ? x.detach().requires_grad_() : x);
    if (variable) own.insert(detail::edge_of(stand_ins.back()).node.get());
  }
  outputs = f(stand_ins);
  for (const Edge& edge : outside_edges(outputs, first, own)) edges.push_back(edge);
  bool any = false;
  for (const Edge& edge : edges) any = any || edge.node;
  if (!any) return outputs;
  const Ref<Node> node(new CheckpointNode(f, inputs, random, std::move(edges)));
  std::vector<Tensor> results;
  for (const Tensor& y : outputs) {
    node->outputs.push_back(y.spec());
    const Tensor result = detail::raw_view(y, y.shape(), y.strides(), y.offset());
    if (y.requires_grad()) {
      result.impl().node = node;
      result.impl().output_index = static_cast<uint32_t>(node->outputs.size() - 1);
    }
    results.push_back(result);
  }
  return results;
}

}  // namespace norma
