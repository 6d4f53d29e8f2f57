#include "norma/ops/norm/forward_skewed.cuh"

namespace norma::norm_cuda {
template bool forward_skewed<Float16>(const Cuda&, const NormForwardArgs&);
}  // namespace norma::norm_cuda
