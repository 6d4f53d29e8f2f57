#include "norma/ops/norm/forward_held.cuh"

namespace norma::norm_cuda {
template bool forward_held<BFloat16>(const Cuda&, const NormForwardArgs&);
}  // namespace norma::norm_cuda
