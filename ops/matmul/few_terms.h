#pragma once

#include "norma/ops/matmul/kernels.h"

namespace norma {

/// c += a b of half types whose sums have 64, 80 or 96 terms, so that c is nearly all that moves: a
/// gradient that Mamba-1's projection to Δ, b and c adds to the scan's. False, and nothing is done,
/// where a call is not of that kind.
bool add_few_terms(Cuda on, const MatmulArgs& k);

}  // namespace norma
