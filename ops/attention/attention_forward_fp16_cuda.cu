#include "norma/ops/attention/portable_forward.cuh"

template void norma::attention::forward_portable<norma::Float16>(const Cuda&,
                                                                 const AttentionForwardArgs&);
