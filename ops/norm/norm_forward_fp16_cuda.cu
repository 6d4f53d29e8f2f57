#include "norma/ops/norm/forward.cuh"

namespace norma::norm_cuda {
template void forward<Float16>(const Cuda&, const NormForwardArgs&);
}  // namespace norma::norm_cuda
