#pragma once

#include "norma/ops/attention/kernels.h"

namespace norma::attention {

// Kernels for Hopper's copy engine and warpgroup products: bf16 and fp16, D at most 128. False
// where the GPU is another one or the views do not fit; nothing has run then.
bool forward_hopper(const Cuda& on, const AttentionForwardArgs& k);
bool backward_hopper(const Cuda& on, const AttentionBackwardArgs& k);
/// The same for causal rows of up to 256 with D at most 64 and no shared keys, each head by one
/// block.
bool backward_short(const Cuda& on, const AttentionBackwardArgs& k);

}  // namespace norma::attention
