#pragma once

#include "norma/core/op.h"

namespace norma {

/// While one lives, the first NaN or Inf that an op or a gradient makes out of finite values on
/// this thread is a GraphError that names the op, what made its inputs, and their shapes:
///   const AnomalyMode watch;
///   loss.backward();
/// Looks at every value, so it is slow; a value that was not finite before is not reported.
class AnomalyMode final : public Observer {
 public:
  void applied(const OpInfo& op, const Call& call) override;
  void differentiated(const Node& node, const Node::Gradients& gradients) override;
};

}  // namespace norma
