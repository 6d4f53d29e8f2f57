#pragma once

#include "norma/ops/norm/backward_any.cuh"
#include "norma/ops/norm/plans.cuh"

namespace norma::norm_cuda {

template <class T>
void backward(const Cuda& on, const NormBackwardArgs& k) {
  backward_any<T>(on, k);
}

}  // namespace norma::norm_cuda
