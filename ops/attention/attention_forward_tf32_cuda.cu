#include "norma/ops/attention/portable_forward.cuh"

template void norma::attention::forward_portable<norma::attention::Tf32>(
    const Cuda&, const AttentionForwardArgs&);
