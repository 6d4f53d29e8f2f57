#pragma once

#include "norma/ops/norm/kernels.h"

namespace norma::detail {

/// The processor's kernels for members without loops of their own.
void run_general(const NormForwardArgs&);
void run_general(const NormBackwardArgs&);

/// Row i of a forward.
NormForwardArgs one_row(NormForwardArgs k, int64_t i);

}  // namespace norma::detail
