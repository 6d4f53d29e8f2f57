#include "norma/ops/norm/forward_staying.cuh"

namespace norma::norm_cuda {
template void forward_staying<BFloat16>(const Cuda&, const NormForwardArgs&, ForwardPlan);
}  // namespace norma::norm_cuda
