#pragma once

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

inline constexpr int kFoldCols = 32, kFoldSlices = 16;

/// The workers' sums in a fixed order: slice s of a column adds the workers s, s + 16, …, and one
/// thread the slices.
///   bytes  workers · n · sizeof(Acc), from the second cache
template <class Acc, bool kPrecise>
__global__ void __launch_bounds__(kFoldCols* kFoldSlices)
    norm_fold_kernel(WeightSums<Acc> sums, int64_t workers, Vec dw, Vec db, Vec dw2, Vec db2) {
  __shared__ Acc slices[kFoldSlices][kFoldCols], rests[kPrecise ? kFoldSlices : 1][kFoldCols];
  cudaGridDependencySynchronize();  // it may have been launched before the sums were there
  const int64_t c = int64_t{blockIdx.x} * kFoldCols + threadIdx.x;
  const int slice = static_cast<int>(threadIdx.y);
#pragma unroll 1
  for (int which = 0; which < kWeightGrads; ++which) {
    const Vec& out = which == 0 ? dw : which == 1 ? db : which == 2 ? dw2 : db2;
    if (!out) continue;
    Acc sum = 0, lost = 0;
    if (c < sums.n) {
#pragma unroll 4
      for (int64_t w = slice; w < workers; w += kFoldSlices) {
        const Acc* from = sums.of(w, which) + c;
        if constexpr (kPrecise) {
          add_precisely(sum, lost, from[0]);
          add_precisely(sum, lost, -from[sums.pitch]);
        } else {
          sum = add(sum, from[0]);
        }
      }
    }
    slices[slice][threadIdx.x] = sum;
    if constexpr (kPrecise) rests[slice][threadIdx.x] = lost;
    __syncthreads();
    if (slice == 0 && c < sums.n) {
      for (int s = 1; s < kFoldSlices; ++s) {
        if constexpr (kPrecise) {
          add_precisely(sum, lost, slices[s][threadIdx.x]);
          add_precisely(sum, lost, -rests[s][threadIdx.x]);
        } else {
          sum = add(sum, slices[s][threadIdx.x]);
        }
      }
      set_value(out, c, sum);
    }
    __syncthreads();
  }
}

template <class Acc>
void fold(const Cuda& on, const WeightSums<Acc>& sums, int64_t workers, const NormBackwardArgs& k) {
  if (sums.count == 0) return;
  const LaunchShape shape{
      .grid = grid_for(sums.n, kFoldCols), .block = dim3(kFoldCols, kFoldSlices), .overlap = true};
  if (sums.kept == 2)
    launch(on, shape, norm_fold_kernel<Acc, true>, sums, workers, k.dw, k.db, k.dw2, k.db2);
  else
    launch(on, shape, norm_fold_kernel<Acc, false>, sums, workers, k.dw, k.db, k.dw2, k.db2);
}

}  // namespace norma::norm_cuda
