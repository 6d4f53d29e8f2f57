#pragma once

#include "norma/ops/attention/kernels.h"

namespace norma::attention {

// Kernels for any GPU since sm_80 and any views; one file a direction and dtype instantiates them.

template <class T>
void forward_portable(const Cuda& on, const AttentionForwardArgs& k);
template <class T>
void backward_portable(const Cuda& on, const AttentionBackwardArgs& k);

}  // namespace norma::attention
