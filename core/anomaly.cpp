#include "norma/core/anomaly.h"

#include <cmath>
#include <string>

#include "norma/core/cuda/side_stream.h"
#include "norma/core/format.h"

namespace norma {
namespace {

/// What the first element is that is not finite, if there is one.
const char* broken_value(const Tensor& t) {
  if (!t.defined() || !is_floating(t.dtype())) return nullptr;
  if constexpr (kBuiltWithCuda) detail::join_side();
  for (double v : t.to_vector<double>())
    if (!std::isfinite(v)) return std::isnan(v) ? "NaN" : v > 0 ? "Inf" : "-Inf";
  return nullptr;
}

/// "(2, 3) of float32 made by mul, (3,) of float32"
std::string described(const Call& call) {
  std::string text;
  for (const Tensor* t : call.inputs) {
    if (!t->defined()) continue;
    text += (text.empty() ? "" : ", ") + to_string(t->shape()) + " of " +
            std::string(to_string(t->dtype()));
    const Ref<Node>& node = t->impl().node;
    if (node && node->name() != "leaf") text += " made by " + std::string(node->name());
  }
  return text;
}

}  // namespace

void AnomalyMode::applied(const OpInfo& op, const Call& call) {
  for (const Tensor* t : call.inputs)
    if (broken_value(*t)) return;
  for (const Tensor& y : call.outputs)
    if (const char* value = broken_value(y))
      throw GraphError(
          "anomaly: {} must give finite values, but gave {} in a result of {}; its inputs "
          "are {}",
          op.name, value, y.shape(), described(call));
}

void AnomalyMode::differentiated(const Node& node, const Node::Gradients& gradients) {
  for (const Tensor& g : gradients)
    if (const char* value = broken_value(g))
      throw GraphError("anomaly: the gradient of {} must be finite, but has {} in one of shape {}",
                       node.name(), value, g.shape());
}

}  // namespace norma
