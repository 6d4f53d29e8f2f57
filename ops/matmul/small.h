#pragma once

#include <optional>
#include <span>
#include <vector>

#include "norma/core/tensor.h"
#include "norma/ops/matmul/kernels.h"

namespace norma {

// Products of float32 that may be rounded to tf32, small, and one of (x, wᵀ), (x, w) and (xᵀ, y)
// as rows lie in memory.

/// Whether `product` is one of them.
bool suits_small(const MatmulArgs& product);
/// Runs it with its epilogue. False, and nothing is done, where it is not.
bool multiply_small(Cuda on, const MatmulArgs& product);
/// Runs an MLP's two in one launch on GPUs with clusters: `inner`, which ends in GELU, and `outer`,
/// whose a is inner's c. False, and nothing is done, where they are not for that kernel.
bool multiply_small_mlp(Cuda on, const MatmulArgs& inner, const MatmulArgs& outer);
/// Keeps a product, or those two, for a norm that may come next and be a part of the same launch;
/// `result` is outer's c, `reads` holds what they read. False, and nothing is done, where launches
/// may not wait (core/waiting_launch.h), or no norm could follow in that kernel.
bool let_rows_wait(const Tensor& result, const std::optional<MatmulArgs>& inner,
                   const MatmulArgs& outer, std::vector<Tensor> reads);
/// Runs one or two in one launch, neither of which reads what the other writes, by so few blocks
/// that other products have room beside them. For those that suit.
void multiply_small_aside(Cuda on, std::span<const MatmulArgs> products);

}  // namespace norma
