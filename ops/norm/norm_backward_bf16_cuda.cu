#include "norma/ops/norm/backward.cuh"

namespace norma::norm_cuda {
template void backward<BFloat16>(const Cuda&, const NormBackwardArgs&);
}  // namespace norma::norm_cuda
