#include "norma/ops/attention/portable_forward.cuh"

template void norma::attention::forward_portable<double>(const Cuda&, const AttentionForwardArgs&);
