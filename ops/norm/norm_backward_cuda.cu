#include "norma/ops/norm/backward_any.cuh"
#include "norma/ops/norm/backward_small.cuh"
#include "norma/ops/norm/choice.h"
#include "norma/ops/norm/plans.h"
#include "norma/ops/norm/weight_fold.cuh"

namespace norma::norm_cuda {

template <class T>
void backward(const Cuda& on, const NormBackwardArgs& k) {
  if constexpr (!std::is_same_v<T, double>) {
    if constexpr (std::is_same_v<T, float>)  // toy models' dtype
      if (!only_general_plans && can_be_small<T>(k)) {
        detail::chose("", "a plain member and a small one, whose cost is its launches");
        return backward_small<T>(on, k);
      }
    if (has_fast_plans(on) && backward_fast<T>(on, k)) return;
  }
  backward_any<T>(on, k);
}
// What is for all GPUs is compiled here, of all dtypes together.
template void backward<float>(const Cuda&, const NormBackwardArgs&);
template void backward<double>(const Cuda&, const NormBackwardArgs&);
template void backward<BFloat16>(const Cuda&, const NormBackwardArgs&);
template void backward<Float16>(const Cuda&, const NormBackwardArgs&);

template void fold<float>(const Cuda&, const WeightSums<float>&, int64_t, const NormBackwardArgs&);
template void fold<double>(const Cuda&, const WeightSums<double>&, int64_t,
                           const NormBackwardArgs&);

}  // namespace norma::norm_cuda
