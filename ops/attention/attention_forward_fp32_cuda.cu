#include "norma/ops/attention/portable_forward.cuh"

template void norma::attention::forward_portable<float>(const Cuda&, const AttentionForwardArgs&);
