#pragma once

#include "norma/ops/norm/forward_any.cuh"
#include "norma/ops/norm/plans.cuh"

namespace norma::norm_cuda {

template <class T>
void forward(const Cuda& on, const NormForwardArgs& k) {
  forward_any<T>(on, k);
}

}  // namespace norma::norm_cuda
