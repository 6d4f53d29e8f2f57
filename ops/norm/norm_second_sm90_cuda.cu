#include "norma/ops/norm/second_rows.cuh"

namespace norma::norm_cuda {
template bool second_by_rows<float>(const Cuda&, const NormSecondArgs&, NormBackwardArgs&,
                                    WeightSums<float>&);
template bool second_by_rows<BFloat16>(const Cuda&, const NormSecondArgs&, NormBackwardArgs&,
                                       WeightSums<float>&);
template bool second_by_rows<Float16>(const Cuda&, const NormSecondArgs&, NormBackwardArgs&,
                                      WeightSums<float>&);
}  // namespace norma::norm_cuda
