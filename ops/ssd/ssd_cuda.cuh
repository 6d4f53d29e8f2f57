#pragma once

#include "norma/core/cuda/launch.cuh"
#include "norma/core/cuda/numeric.cuh"
#include "norma/core/cuda/packed.cuh"
#include "norma/core/cuda/reduce.cuh"
#include "norma/core/cuda/scratch.h"
#include "norma/ops/ssd/kernels.h"

namespace norma::ssd_cuda {

// Chunks of 64 steps; every product is one of the tensor cores', m16n8k16 on bf16 or fp16 with sums
// in fp32. What a product reads is rounded to T, everything else stays in fp32.

constexpr int kQ = 64, kP = 64;
constexpr int kPad = 8;  // elements behind a row in shared memory: its neighbours' banks differ

/// Rows of a (B, T, columns) tensor.
template <class T>
struct Sequence {
  T* data;
  int64_t batch_stride, row_stride;

  template <class AnyView>
  static Sequence of(const AnyView& view) {
    return {view.template as<std::remove_const_t<T>>(), view.strides[0], view.strides[1]};
  }
  __device__ T* row(int64_t batch, int64_t t) const {
    return data + batch * batch_stride + t * row_stride;
  }
};

struct Sizes {
  int64_t batch, length, chunks;
  int heads, groups;
  __host__ __device__ int shared() const { return heads / groups; }
  __host__ __device__ int64_t padded() const { return chunks * kQ; }
};

// A fragment's elements: lane = 4 · row + column / 2 in each 8 × 8 matrix.

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* address) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(address));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at));
}
__device__ __forceinline__ void load_matrices_turned(uint32_t (&r)[4], const void* address) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(address));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at));
}
__device__ __forceinline__ int lane_of() { return int(threadIdx.x) % kWarpSize; }

/// A's 16 × 16 block at (m, k), stored a row m.
template <class T>
__device__ __forceinline__ void load_a(uint32_t (&r)[4], const T* a, int stride, int m, int k) {
  const int l = lane_of(), mat = l / 8;
  load_matrices(r, a + (m + mat % 2 * 8 + l % 8) * stride + k + mat / 2 * 8);
}
/// The same, stored a row k.
template <class T>
__device__ __forceinline__ void load_a_turned(uint32_t (&r)[4], const T* a, int stride, int m,
                                              int k) {
  const int l = lane_of(), mat = l / 8;
  load_matrices_turned(r, a + (k + mat / 2 * 8 + l % 8) * stride + m + mat % 2 * 8);
}
/// B's 16 × 16 block at (k, n) as two operands (r[0], r[1]) and (r[2], r[3]), stored a row n.
template <class T>
__device__ __forceinline__ void load_b(uint32_t (&r)[4], const T* b, int stride, int k, int n) {
  const int l = lane_of(), mat = l / 8;
  load_matrices(r, b + (n + mat / 2 * 8 + l % 8) * stride + k + mat % 2 * 8);
}
/// The same, stored a row k.
template <class T>
__device__ __forceinline__ void load_b_turned(uint32_t (&r)[4], const T* b, int stride, int k,
                                              int n) {
  const int l = lane_of(), mat = l / 8;
  load_matrices_turned(r, b + (k + mat % 2 * 8 + l % 8) * stride + n + mat / 2 * 8);
}

template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  if constexpr (std::is_same_v<T, BFloat16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t r;
  if constexpr (std::is_same_v<T, BFloat16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
struct Pair {
  float low, high;
};
template <class T>
__device__ __forceinline__ Pair unpack(uint32_t r) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return {__uint_as_float(r << 16), __uint_as_float(r & 0xffff0000u)};
  } else {
    const float2 f = __half22float2(*reinterpret_cast<const __half2*>(&r));
    return {f.x, f.y};
  }
}
template <class T>
__device__ __forceinline__ uint32_t scaled(uint32_t r, float low, float high) {
  const Pair p = unpack<T>(r);
  return pack<T>(p.low * low, p.high * high);
}
template <class T>
__device__ __forceinline__ Pair read_pair(const T* from) {
  return unpack<T>(*reinterpret_cast<const uint32_t*>(from));
}

__device__ __forceinline__ float exp_fast(float v) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(v * 1.4426950408889634f));
  return y;
}

/// 16 bytes from global to shared memory in the background, zeros where `real` is false.
__device__ __forceinline__ void copy_16(void* to, const void* from, bool real) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = real ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes));
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;"); }
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending));
}
/// 64 rows of kColumns from step t0 on, by kThreads threads; zeros beyond the end.
template <int kColumns, int kThreads, class T>
__device__ __forceinline__ void copy_rows(T* to, const Sequence<const T>& from, int64_t batch,
                                          int64_t t0, int64_t length, int64_t column) {
  constexpr int kRuns = kColumns / 8;
#pragma unroll
  for (int i = threadIdx.x; i < kQ * kRuns; i += kThreads) {
    const int row = i / kRuns, run = i % kRuns;
    const bool real = t0 + row < length;
    copy_16(to + row * (kColumns + kPad) + run * 8,
            from.row(batch, real ? t0 + row : 0) + column + run * 8, real);
  }
}
/// A dense (kP, kColumns) matrix likewise.
template <int kColumns, int kThreads, class T>
__device__ __forceinline__ void copy_matrix(T* to, const T* from) {
  constexpr int kRuns = kColumns / 8;
#pragma unroll
  for (int i = threadIdx.x; i < kP * kRuns; i += kThreads) {
    const int row = i / kRuns, run = i % kRuns;
    copy_16(to + row * (kColumns + kPad) + run * 8, from + row * kColumns + run * 8, true);
  }
}

/// Δ, its slope in dt, and in each chunk the running sum of Δ a: (B, padded T, H) each.
struct Steps {
  float *delta, *slope, *sum;
};
/// What the states' kernel needs for one direction: states along time from x and b, or their
/// gradients against it from dy and c.
template <class T>
struct StateSide {
  Sequence<const T> rows, columns;
  const float* first;  // (B, H, P, N) or null
  T* states;           // (B, chunks, H, P, N): before each chunk, in the direction of the walk
  float* last;         // (B, H, P, N) or null
};

template <class T>
void compute_steps(Cuda on, const Sizes& size, const Sequence<const T>& dt, const float* a,
                   const float* dt_bias, bool softplus, double dt_min, double dt_max,
                   const Steps& steps);
/// Both directions in one launch where there are two.
template <class T>
void compute_states(Cuda on, const Sizes& size, int n, const Steps& steps,
                    const StateSide<T>& along, const StateSide<T>* against);

}  // namespace norma::ssd_cuda
