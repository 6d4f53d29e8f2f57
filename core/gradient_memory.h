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

}  // namespace norma::detail
