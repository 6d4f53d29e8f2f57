#include "norma/ops/attention/portable_backward.cuh"

template void norma::attention::backward_portable<double>(const Cuda&,
                                                          const AttentionBackwardArgs&);
