#pragma once

#include <span>

#include "norma/ops/matmul/kernels.h"

namespace norma {

/// Runs one or two products dw = dyᵀ x of half types into float32 on Hopper, of 4096 rows or more
/// and so few elements that blocks share their sums. False, and nothing is done, where the calls
/// are not of that kind.
bool multiply_weights(Cuda on, std::span<const MatmulArgs> products);
/// Whether it would, by everything but what the factors hold.
bool suits_weights(std::span<const MatmulArgs> products);

}  // namespace norma
