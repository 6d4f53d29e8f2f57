#include "norma/ops/attention/portable_forward.cuh"

namespace norma::attention {
template void forward_portable<float>(const Cuda&, const AttentionForwardArgs&);
template void forward_portable<Tf32>(const Cuda&, const AttentionForwardArgs&);
template void forward_portable<double>(const Cuda&, const AttentionForwardArgs&);
}  // namespace norma::attention
