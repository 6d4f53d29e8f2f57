#include "norma/ops/attention/portable_backward.cuh"

template void norma::attention::backward_portable<norma::attention::Tf32>(
    const Cuda&, const AttentionBackwardArgs&);
