#pragma once

#include "norma/ops/norm/kernels.h"

namespace norma::norm_cuda {

/// Tests set it: the kernels that cover every member and size then take the place of the fast ones,
/// and must give the same bits in y, dx and dz.
extern bool only_general_plans;

/// For x of T; a file each instantiates them.
template <class T>
void forward(const Cuda& on, const NormForwardArgs& k);
template <class T>
void backward(const Cuda& on, const NormBackwardArgs& k);

}  // namespace norma::norm_cuda
