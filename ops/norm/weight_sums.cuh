#pragma once

#include "norma/core/cuda/launch.cuh"
#include "norma/core/cuda/scratch.h"
#include "norma/ops/norm/kernels.h"
#include "norma/ops/norm/row.cuh"

namespace norma::norm_cuda {

inline constexpr int kWeightGrads = 4;  // dw, db, dw2, db2

/// Sums over rows, a row of each wanted gradient a worker (a warp or block that lives for the whole
/// call); precise ones have beside them what their additions rounded away.
template <class Acc>
struct WeightSums {
  Acc* data = nullptr;
  int64_t n = 0, pitch = 0;  ///< elements of a gradient, and of its place
  int count = 0;             ///< wanted gradients
  int kept = 1;              ///< 2: and what was rounded away
  int place[kWeightGrads] = {-1, -1, -1, -1};

  explicit WeightSums(const NormBackwardArgs& k) : kept(k.options.precise ? 2 : 1) {
    const Vec* wanted[kWeightGrads] = {&k.dw, &k.db, &k.dw2, &k.db2};
    for (int i = 0; i < kWeightGrads; ++i)
      if (*wanted[i]) place[i] = count++, n = wanted[i]->n;
    pitch = ceil_div(n, int64_t{32}) * 32;
  }
  int64_t worker_size() const { return count * kept * pitch; }
  __device__ Acc* of(int64_t worker, int which) const {
    return data + (worker * count + place[which]) * kept * pitch;
  }
};

/// sum += term; with `lost` by Kahan's rule (1965, doi:10.1145/363707.363723).
template <class Acc>
__device__ __forceinline__ void add_precisely(Acc& sum, Acc& lost, Acc term) {
  const Acc corrected = sub(term, lost), next = add(sum, corrected);
  lost = sub(sub(next, sum), corrected);
  sum = next;
}

/// Adds the workers' sums to what k wants of them (weight_fold.cuh).
template <class Acc>
void fold(const Cuda& on, const WeightSums<Acc>& sums, int64_t workers, const NormBackwardArgs& k);

}  // namespace norma::norm_cuda
