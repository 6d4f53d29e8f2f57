#include "norma/ops/attention/portable_forward.cuh"

template void norma::attention::forward_portable<norma::BFloat16>(const Cuda&,
                                                                  const AttentionForwardArgs&);
