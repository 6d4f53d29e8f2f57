#pragma once

#include <span>

#include "norma/ops/matmul/kernels.h"

namespace norma {

// Products of float32 that may be rounded to tf32, small, and one of (x, wᵀ), (x, w) and (xᵀ, y)
// as rows lie in memory.

/// Whether `product` is one of them.
bool suits_small(const MatmulArgs& product);
/// Runs it with its epilogue. False, and nothing is done, where it is not.
bool multiply_small(Cuda on, const MatmulArgs& product);
/// Runs one or two in one launch, neither of which reads what the other writes, by so few blocks
/// that other products have room beside them. For those that suit.
void multiply_small_aside(Cuda on, std::span<const MatmulArgs> products);

}  // namespace norma
