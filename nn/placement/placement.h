#pragma once

#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "norma/nn/norm.h"
#include "norma/nn/residual.h"

namespace norma::nn {

/// Which layer of how many, and how many sub-layers it has.
struct LayerInfo {
  int64_t layer = 0, n_layers = 0, n_sublayers = 2;
};
/// Makes a norm of the model's kind and width.
using MakeNorm = std::function<Norm()>;
/// Attention, MLP or a Mamba block, without norm and residual.
using Sublayer = std::function<Tensor(const Tensor&)>;

/// The norms that a placement asked for, by name. A name is part of a parameter's name.
class Parts {
 public:
  void add(const std::string& name, Norm norm) { norms_.emplace_back(name, std::move(norm)); }
  /// GraphError where `prepare` made none of that name.
  const Norm& operator[](std::string_view name) const;
  void visit(Visitor& v) {
    for (auto& [name, norm] : norms_) v(name, norm);
  }

 private:
  std::vector<std::pair<std::string, Norm>> norms_;
};

/// Where the norms of a model stand: a flat struct of functions, each with a default. A layer
/// has `parts` of its own; the stack has some around all layers.
struct Placement {
  /// Makes a layer's norms.
  std::function<void(Parts&, const LayerInfo&, const MakeNorm&)> prepare;
  /// Makes the norms around the stack. Default: none.
  std::function<void(Parts&, const MakeNorm&)> prepare_stack = nullptr;
  /// The streams that go into the first layer. Default: the embedding alone.
  std::function<Residual(const Tensor& embedding, const Parts& stack)> begin = nullptr;
  /// Adds sub-layer number `index` of a layer (of a transformer's: 0 attention, 1 MLP).
  std::function<void(Residual&, const Sublayer&, int index, const Parts&, const LayerInfo&)> apply =
      nullptr;
  /// A whole layer at once, where its sub-layers share a norm. Default: apply for each.
  std::function<void(Residual&, std::span<const Sublayer>, const Parts&, const LayerInfo&)> block =
      nullptr;
  /// What the output layer reads. Default: the main stream.
  std::function<Tensor(Residual&, const Parts& stack)> final = nullptr;
  size_t more_streams = 0;  ///< beside the main one; layers of one model must agree
};

/// The placement of that name. ValueError for an unknown one, naming those there are. Ours:
///   pre            x + f(norm(x)), a norm at the end (Xiong et al. 2020, arXiv:2002.04745)
///   post           norm(x + f(x)) (Vaswani et al. 2017, arXiv:1706.03762)
///   sandwich       x + norm(f(norm(x))), a norm at the end (Ding et al. 2021, arXiv:2105.13290)
///   parallel       n = norm(x), x + attention(n) + mlp(n), a norm at the end (GPT-J)
///   residual-dual  post beside a second stream d + f(x), the output x + norm(d) (Xie et al. 2023,
///                  arXiv:2304.14802)
const Placement& placement(std::string_view name);
/// Adds a placement of one's own, before other threads look for any. ValueError where the name is
/// taken.
void register_placement(std::string name, Placement placement);
std::vector<std::string> placement_names();  ///< in alphabetic order

/// The placement of each layer: one name, or runs such as "pre:4,post:2" that add up to n_layers.
/// ValueError where they do not, and where layers carry different numbers of streams.
std::vector<const Placement*> placements(std::string_view text, int64_t n_layers);

}  // namespace norma::nn
