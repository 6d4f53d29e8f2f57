#include "norma/ops/attention/portable_backward.cuh"

template void norma::attention::backward_portable<norma::Float16>(const Cuda&,
                                                                  const AttentionBackwardArgs&);
