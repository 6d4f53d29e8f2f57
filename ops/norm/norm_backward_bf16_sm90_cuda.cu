#include "norma/ops/norm/backward_fast.cuh"

namespace norma::norm_cuda {
template bool backward_fast<BFloat16>(const Cuda&, const NormBackwardArgs&);
}  // namespace norma::norm_cuda
