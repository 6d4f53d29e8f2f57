#pragma once

#include "norma/ops/norm/kernels.h"

namespace norma::norm_cuda {

/// Whether the kernels that cover every member and size run alone: where the environment says
/// NORMA_NORM_PLANS=general. The plans that read each tensor once give the same bits in y, dx and
/// dz, so this is for telling a bug of theirs from another's.
extern bool only_general_plans;

/// For x of T; a file each instantiates them.
template <class T>
void forward(const Cuda& on, const NormForwardArgs& k);
template <class T>
void backward(const Cuda& on, const NormBackwardArgs& k);

}  // namespace norma::norm_cuda
