#include "norma/ops/attention/portable_backward.cuh"

namespace norma::attention {
template void backward_portable<Float16>(const Cuda&, const AttentionBackwardArgs&);
}  // namespace norma::attention
