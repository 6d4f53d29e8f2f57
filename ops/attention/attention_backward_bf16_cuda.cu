#include "norma/ops/attention/portable_backward.cuh"

namespace norma::attention {
template void backward_portable<BFloat16>(const Cuda&, const AttentionBackwardArgs&);
}  // namespace norma::attention
