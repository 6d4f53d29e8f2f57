#pragma once

#include "norma/ops/attention/kernels.h"

namespace norma::attention {

// Kernels for any GPU since sm_80 and any views. attention_forward_*_cuda.cu and
// attention_backward_*_cuda.cu instantiate them.

/// In place of float: its products' factors may be rounded to tf32. For heads of up to kTf32Head.
struct Tf32 {};
inline constexpr int kTf32Head = 128;

template <class T>
void forward_portable(const Cuda& on, const AttentionForwardArgs& k);
template <class T>
void backward_portable(const Cuda& on, const AttentionBackwardArgs& k);

}  // namespace norma::attention
