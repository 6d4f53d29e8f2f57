#pragma once

#include "norma/ops/norm/kernels.h"

namespace norma::norm_cuda {

/// For x of T; a file each instantiates them.
template <class T>
void forward(const Cuda& on, const NormForwardArgs& k);
template <class T>
void backward(const Cuda& on, const NormBackwardArgs& k);

}  // namespace norma::norm_cuda
