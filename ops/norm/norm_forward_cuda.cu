#include "norma/ops/norm/forward_any.cuh"
#include "norma/ops/norm/forward_group.cuh"
#include "norma/ops/norm/plans.h"

namespace norma::norm_cuda {

// Which kernel was faster where, on an H100 (bench/RESULTS.md). What is for all GPUs is compiled
// here, of all dtypes together.

/// Groups of a few vectors go through shared memory in one piece, but for 16 bits where arithmetic
/// and not memory is the bound.
template <class T>
bool is_short(const NormForwardArgs& k, int64_t bytes) {
  if (bytes <= 64) return true;
  if (sizeof(T) == 4 || k.z || k.residual) return bytes <= 256;
  return bytes <= 128 && k.options.kind != NormKind::layer;
}
template <class T>
bool fast_forward(const Cuda& on, const NormForwardArgs& k) {
  const int64_t size = k.options.group == 0 ? k.x.cols : k.options.group;
  if (!can_hold<T>(k)) return false;
  if (is_short<T>(k, size * int64_t{sizeof(T)}) && forward_skewed<T>(on, k)) return true;
  return is_aligned_forward<T>(k, size) ? forward_held<T>(on, k) : forward_skewed<T>(on, k);
}

template <class T>
void forward(const Cuda& on, const NormForwardArgs& k) {
  if constexpr (!std::is_same_v<T, double>)
    if (!only_general_plans && fast_forward<T>(on, k)) return;
  forward_any<T>(on, k);
}
template void forward<float>(const Cuda&, const NormForwardArgs&);
template void forward<double>(const Cuda&, const NormForwardArgs&);
template void forward<BFloat16>(const Cuda&, const NormForwardArgs&);
template void forward<Float16>(const Cuda&, const NormForwardArgs&);

}  // namespace norma::norm_cuda
