#pragma once

#include "norma/ops/norm/forward_held.cuh"
#include "norma/ops/norm/plans.h"

namespace norma::norm_cuda {

template <class T>
void forward(const Cuda& on, const NormForwardArgs& k) {
  if constexpr (!std::is_same_v<T, double>)
    if (!only_general_plans && can_hold<T>(k) && forward_held<T>(on, k)) return;
  forward_any<T>(on, k);
}

}  // namespace norma::norm_cuda
