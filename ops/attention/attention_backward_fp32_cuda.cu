#include "norma/ops/attention/portable_backward.cuh"

template void norma::attention::backward_portable<float>(const Cuda&, const AttentionBackwardArgs&);
