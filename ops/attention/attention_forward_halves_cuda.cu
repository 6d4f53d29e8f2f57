#include "norma/ops/attention/portable_forward.cuh"

namespace norma::attention {
template void forward_portable<BFloat16>(const Cuda&, const AttentionForwardArgs&);
template void forward_portable<Float16>(const Cuda&, const AttentionForwardArgs&);
}  // namespace norma::attention
