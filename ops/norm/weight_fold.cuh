#pragma once

#include "norma/ops/norm/weight_sums.cuh"

namespace norma::norm_cuda {

inline constexpr int kFoldThreads = 256;

/// The workers' sums in a fixed order: slice s of a column adds the workers s, s + slices, …; those
/// of a warp are added by butterflies, where they are not precise, and the first part of the block
/// adds the others. A thread has 16 bytes of columns; blockIdx.y is the gradient.
///   bytes  workers · n · sizeof(Acc), from the second cache
template <class Acc, bool kPrecise>
__global__ void __launch_bounds__(kFoldThreads)
    norm_fold_kernel(const __grid_constant__ WeightSums<Acc> sums, int workers, int slices,
                     const __grid_constant__ Vec dw, const __grid_constant__ Vec db,
                     const __grid_constant__ Vec dw2, const __grid_constant__ Vec db2) {
  using Few = Packed<Acc, kWidest<Acc>>;
  __shared__ Few slice_sums[kFoldThreads], rests[kPrecise ? kFoldThreads : 1];
  const int width = kFoldThreads / slices;  // threads of a slice
  const int slice = static_cast<int>(threadIdx.x) / width;
  const int64_t c =
      (int64_t{blockIdx.x} * width + static_cast<int>(threadIdx.x) % width) * kWidest<Acc>;
  int which = 0;
  for (int left = static_cast<int>(blockIdx.y); sums.place[which] < 0 || left-- > 0;) ++which;
  const Vec& out = which == 0 ? dw : which == 1 ? db : which == 2 ? dw2 : db2;
  Few sum{}, lost{};
  const auto add_to = [&](const Few& term, const Few& rest) {
#pragma unroll
    for (int e = 0; e < kWidest<Acc>; ++e) {
      if constexpr (kPrecise) {
        add_precisely(sum[e], lost[e], term[e]);
        add_precisely(sum[e], lost[e], -rest[e]);
      } else {
        sum[e] = add(sum[e], term[e]);
      }
    }
  };
  wait_for_previous_kernel();  // it may have been launched before the sums were there
  if (c < sums.n) {
#pragma unroll 8
    for (int w = slice; w < workers; w += slices) {
      const Acc* from = sums.of(w, which) + c;
      const Few term = load<kWidest<Acc>>(from);
      add_to(term, kPrecise ? load<kWidest<Acc>>(from + sums.pitch) : term);
    }
  }
  int part = slice, parts = slices;
  if (!kPrecise && width < kWarpSize) {
    part = static_cast<int>(threadIdx.x) / kWarpSize, parts = kFoldThreads / kWarpSize;
    for (int step = width; step < kWarpSize; step *= 2)
#pragma unroll
      for (int e = 0; e < kWidest<Acc>; ++e)
        sum[e] = add(sum[e], __shfl_xor_sync(0xffffffffu, sum[e], step));
  }
  const int column = static_cast<int>(threadIdx.x) % width;
  slice_sums[part * width + column] = sum;  // a warp's lanes of one column have the same
  if constexpr (kPrecise) rests[threadIdx.x] = lost;
  __syncthreads();
  if (static_cast<int>(threadIdx.x) >= width) return;
#pragma unroll 4
  for (int p = 1; p < parts; ++p)
    add_to(slice_sums[p * width + column], rests[kPrecise ? p * width + column : 0]);
#pragma unroll
  for (int e = 0; e < kWidest<Acc>; ++e)
    if (c + e < sums.n) set_value(out, c + e, sum[e]);
}

template <class Acc>
void fold(const Cuda& on, const WeightSums<Acc>& sums, int64_t workers, const NormBackwardArgs& k) {
  if (sums.count == 0) return;
  int slices = 1;  // of about four workers
  while (slices < 64 && slices * 4 < workers) slices *= 2;
  dim3 grid = grid_for(sums.n, kFoldThreads / slices * kWidest<Acc>);
  grid.y = static_cast<unsigned>(sums.count);
  const LaunchShape shape{.grid = grid, .block = dim3(kFoldThreads), .overlap = true};
  launch(on, shape, sums.kept == 2 ? norm_fold_kernel<Acc, true> : norm_fold_kernel<Acc, false>,
         sums, static_cast<int>(workers), slices, k.dw, k.db, k.dw2, k.db2);
}

}  // namespace norma::norm_cuda
