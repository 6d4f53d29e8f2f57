#pragma once

#include <vector>

#include "norma/core/tensor.h"
#include "norma/ops/embedding/kernels.h"

namespace norma {

/// Keeps a lookup of rows and their positions for a norm that may come next and be a part of the
/// same launch; `result` is its y, `reads` holds what it reads. False, and nothing is done, where
/// launches may not wait (core/waiting_launch.h), or no norm could follow in that kernel.
bool let_embedding_wait(const Tensor& result, const EmbeddingForwardArgs& k,
                        std::vector<Tensor> reads);

}  // namespace norma
