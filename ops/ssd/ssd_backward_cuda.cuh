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
/// What one warp makes of the gradients of a chunk's running sums of Δ a, two steps a lane: added
/// up from the back they are those of Δ a; ddt follows, and the chunk's parts of da and ddt_bias.
///   last  what the chunk's last sum gets besides
///   of    of(e) has what else is of the lane's step e, read when it is wanted
struct StepSums {
  float along, delta, slope;  ///< ⟨d(Δ x), x⟩, Δ and dΔ/dt
};
template <class T, class Of>
__device__ __forceinline__ void finish_steps(const BackwardKernelArgs<T>& k, int64_t batch,
                                             int64_t t0, int head, float (&dsum)[2], float last,
                                             float a, const Of& of) {
  const int lane = lane_of();
  if (lane == kWarpSize - 1) dsum[1] += last;
  float behind = dsum[0] + dsum[1];  // of this lane and all after it
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    const float other = __shfl_down_sync(0xffffffffu, behind, step);
    if (lane + step < kWarpSize) behind += other;
  }
  const float dfade[2] = {behind, behind - dsum[0]};
  float da = 0, ddt_bias = 0;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int64_t t = t0 + lane * 2 + e;
    const StepSums own = of(e);
    const float raw = (own.along + a * dfade[e]) * own.slope;
    da += own.delta * dfade[e];
    ddt_bias += raw;
    if (t < k.size.length) k.ddt.row(batch, t)[head] = convert<T>(raw);
  }
  da = warp_sum(da), ddt_bias = warp_sum(ddt_bias);
  const int64_t heads = k.size.heads;
  float* to = k.sums + (blockIdx.x * (kP + 2) + kP) * heads + head;
  if (lane == 0) to[0] = da, to[heads] = ddt_bias;
}

// What both kernels of half types share: each warp has 16 steps of a chunk.

/// Σ over the eight rows of four columns a lane: column lane / 8.
__device__ __forceinline__ float over_rows(const float (&v)[4]) {
  const bool late = lane_of() & 16, odd = lane_of() & 8;
  const float first = (late ? v[2] : v[0]) + __shfl_xor_sync(0xffffffffu, late ? v[0] : v[2], 16);
  const float second = (late ? v[3] : v[1]) + __shfl_xor_sync(0xffffffffu, late ? v[1] : v[3], 16);
  const float sum = (odd ? second : first) + __shfl_xor_sync(0xffffffffu, odd ? first : second, 8);
  return sum + __shfl_xor_sync(0xffffffffu, sum, 4);
}
/// Of a head, for its steps' gradients.
struct HeadSums {
  float rows[kQ], columns[kQ / 16][kQ], risen[kQ], fallen[kQ], dot[kP / 16];
};
/// Two steps a lane of a head.
struct OwnSteps {
  float a, fade, delta[2], slope[2];
  template <class Head>
  __device__ __forceinline__ void read(const Head& own, float of_head) {
    a = of_head, fade = exp2_fast(own.sum[kQ - 1]);
#pragma unroll
    for (int e = 0; e < 2; ++e)
      delta[e] = own.delta[lane_of() * 2 + e], slope[e] = own.slope[lane_of() * 2 + e];
  }
};
/// The gradients of dt, a and dt_bias: one warp.
template <class T>
__device__ __forceinline__ void finish_head(const BackwardKernelArgs<T>& k, int64_t batch,
                                            int64_t t0, int head, const HeadSums& sums,
                                            const OwnSteps& steps) {
  float dsum[2], along[2], falls = 0;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int j = lane_of() * 2 + e;
    float columns = 0;
#pragma unroll
    for (int rows = 0; rows < kQ / 16; ++rows)
      if (rows >= j / 16) columns += sums.columns[rows][j];
    const float fallen = sums.fallen[j] * steps.delta[e];
    falls += fallen;
    dsum[e] = sums.rows[j] + sums.risen[j] - fallen - columns * steps.delta[e];
    along[e] = sums.fallen[j] + columns;  // ⟨d(Δ x), x⟩
  }
  falls = warp_sum(falls);
  float dot = 0;
#pragma unroll
  for (float each : sums.dot) dot += each;
  finish_steps(k, batch, t0, head, dsum, falls + steps.fade * dot, steps.a, [&](int e) {
    return StepSums{along[e], steps.delta[e], steps.slope[e]};
  });
}

/// What is left to a chunk, of half types.
template <class T, int kN>
void backward_chunks(Cuda on, const BackwardKernelArgs<T>& k);
/// The same on Hopper; false where it is another GPU, or strides that its copy engine cannot read.
template <class T, int kN>
bool backward_chunks_hopper(Cuda on, const BackwardKernelArgs<T>& k);

}  // namespace norma::ssd_cuda
