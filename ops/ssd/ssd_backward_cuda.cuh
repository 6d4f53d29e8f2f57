#pragma once

#include "norma/ops/ssd/ssd_cuda.cuh"

namespace norma::ssd_cuda {

// The backward pass: states and their gradients at the chunks' ends come first, both computed anew,
// in one launch; the rest of a chunk is then independent of all others.

constexpr int kBackwardBlocks = 1;  // a multiprocessor

template <class T>
struct BackwardKernelArgs {
  Sizes size;
  Steps steps;
  Sequence<const T> dy, x, b, c;
  Sequence<T> dx, ddt, db, dc;
  const float *a, *d;  // d (H, P) or null
  const T *states, *dstates;
  float *db_parts, *dc_parts;  // (parts, B, T, G, N), where there are several
  float* sums;                 // (B · chunks, H · (P + 2)): dd, then da, then ddt_bias
  int heads_each, parts;
};

/// Σ over a row's four lanes.
__device__ __forceinline__ float over_row(float v) {
  v += __shfl_xor_sync(0xffffffffu, v, 1);
  return v + __shfl_xor_sync(0xffffffffu, v, 2);
}
/// What is left to a chunk, of half types.
template <class T, int kN>
void backward_chunks(Cuda on, const BackwardKernelArgs<T>& k);

}  // namespace norma::ssd_cuda
