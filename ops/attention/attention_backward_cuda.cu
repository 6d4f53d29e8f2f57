#include "norma/ops/attention/portable_backward.cuh"

namespace norma::attention {
template void backward_portable<float>(const Cuda&, const AttentionBackwardArgs&);
template void backward_portable<double>(const Cuda&, const AttentionBackwardArgs&);
}  // namespace norma::attention
