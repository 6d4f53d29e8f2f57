#pragma once

#include "norma/ops/norm/forward_ring.cuh"
#include "norma/ops/norm/plans.h"

namespace norma::norm_cuda {

/// Groups up to 8192 elements are held by warps and blocks, longer ones come by a ring; members
/// and sizes that neither covers take the general kernel.
template <class T>
void forward(const Cuda& on, const NormForwardArgs& k) {
  if constexpr (!std::is_same_v<T, double>) {
    if (!only_general_plans && can_hold<T>(k)) {
      const HeldPlan plan = plan_held<T>(k);
      if (plan.order.chunks <= (kHeldWarps<T, Holder::block>)) return forward_held<T>(on, k, plan);
      if (forward_ring<T>(on, k, plan)) return;
    }
  }
  forward_any<T>(on, k);
}

}  // namespace norma::norm_cuda
