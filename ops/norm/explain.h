#pragma once

#include <string>

#include "norma/ops/norm/norm.h"

namespace norma {

/// One direction of a norm: which kernel it gets and why, and how close that comes to copying.
struct NormCost {
  std::string kernel;  ///< on a GPU every kernel that was launched, in order
  std::string why;
  int64_t read = 0, written = 0;  ///< bytes, each tensor once
  double seconds = 0;             ///< the least of several calls, on a GPU by the device's clock
  double copy_seconds = 0;        ///< of a copy_ that moves as many bytes on the same device
  double share_of_copy() const { return seconds > 0 ? copy_seconds / seconds : 0; }
};
struct NormExplanation {
  std::string what;  ///< "norm of (4096, 1024) bfloat16 on cuda:0"
  NormCost forward, backward;
};
/// Runs a norm and its backward a few times and tells: print("{}", explain(x, {.w = w})). Nothing
/// is recorded. Timing takes some tens of milliseconds a direction, caches are not flushed.
NormExplanation explain(const Tensor& x, const NormInputs& inputs = {},
                        const NormOptions& options = {});
std::string to_string(const NormExplanation& explanation);

}  // namespace norma
