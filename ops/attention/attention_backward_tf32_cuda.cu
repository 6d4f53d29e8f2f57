#include "norma/ops/attention/portable_backward.cuh"

namespace norma::attention {
template void backward_portable<Tf32>(const Cuda&, const AttentionBackwardArgs&);
}  // namespace norma::attention
