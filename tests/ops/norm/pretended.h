#pragma once

#include "norma/core/device.h"
#include "norma/ops/norm/plans.h"

namespace norma::testing {

/// While it lives, kernels have as many blocks as on a GPU of so many multiprocessors: a few rows
/// are then many to each.
struct Pretended {
  explicit Pretended(int count) {
    if constexpr (kBuiltWithCuda) norm_cuda::pretended_multiprocessors = count;
  }
  ~Pretended() {
    if constexpr (kBuiltWithCuda) norm_cuda::pretended_multiprocessors = 0;
  }
  Pretended(const Pretended&) = delete;
  Pretended& operator=(const Pretended&) = delete;
};

}  // namespace norma::testing
