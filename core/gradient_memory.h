#pragma once

#include "norma/core/tensor.h"

namespace norma::detail {

/// While one lives, a sweep runs on this thread, maybe inside another one.
class RunningSweep {
 public:
  explicit RunningSweep(bool records);
  ~RunningSweep();
  RunningSweep(const RunningSweep&) = delete;
  RunningSweep& operator=(const RunningSweep&) = delete;

 private:
  bool before_;
};
int running_sweeps();  ///< on this thread, one inside the other

/// Memory for a gradient of x. Where x is a part of wider rows that fill a storage, as split gives
/// them, and an unrecorded sweep runs, it is the same part of memory of that width, one piece for
/// all parts: who joins their gradients finds them side by side and copies nothing. A part is given
/// once in a sweep; who asks again, and everyone else, gets dense memory.
Tensor empty_gradient(const Tensor& x);

/// In the backward of a node that a sweep runs: what has arrived of the gradient of its input `i`
/// from elsewhere, for an op that adds to it while it computes its own share. Who takes it returns
/// it as its gradient, with that share added; the sum is then rounded once and not twice. Undefined
/// where nothing has arrived, somebody else may look at it, or the sweep is recorded.
Tensor take_gradient(int i);
/// Whether t is dense and nobody else sees its elements: then it may be added to in place.
bool is_only_holder(const Tensor& t);

}  // namespace norma::detail
