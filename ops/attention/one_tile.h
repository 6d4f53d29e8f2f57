#pragma once

#include "norma/ops/attention/kernels.h"

namespace norma::attention {

// Up to 64 queries and keys of float32 whose products may be rounded to tf32: a block of 16 warps a
// head, one pass. False, and nothing is done, where a call is not of that kind.

bool forward_one_tile(const Cuda& on, const AttentionForwardArgs& k);
bool backward_one_tile(const Cuda& on, const AttentionBackwardArgs& k);

}  // namespace norma::attention
