#pragma once

#include <span>

#include "norma/ops/matmul/kernels.h"

namespace norma {

/// Runs one or two products, neither of which reads what the other writes, in one launch with all
/// their epilogues. False, and nothing is done, unless each is of float32 that may be rounded to
/// tf32, small, and one of (x, wᵀ), (x, w) and (xᵀ, y) as rows lie in memory.
bool multiply_small(Cuda on, std::span<const MatmulArgs> products);

}  // namespace norma
