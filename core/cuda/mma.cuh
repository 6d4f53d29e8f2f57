#pragma once

#include <cstdint>
#include <type_traits>

#include "norma/core/cuda/barrier.cuh"
#include "norma/core/cuda/numeric.cuh"

namespace norma {

// Products of small matrices of bf16, fp16 or tf32, summed in float32, by one warp on the tensor
// cores (every GPU since sm_80). How the lanes hold a matrix of 16 rows: lane l has of each 8
// columns those 2 (l % 4) and the next one, in rows l / 4 and l / 4 + 8. Hopper's products by four
// warps (wgmma.cuh) hold theirs in the same way, 16 rows a warp.

/// Four 8 × 8 matrices of 16-bit elements; lane l points to row l % 8 of matrix l / 8, 16 bytes
/// aligned to 16. A lane gets of matrix m in r[m] the elements 2 (l % 4) and the next, of row l
/// / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
/// The same matrices transposed.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

/// The other way, on sm_90: what load_matrices of the same rows would give.
__device__ __forceinline__ void store_matrices(void* row, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(
                   shared_address(row)),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

/// c += a b for a (16 × 16), b (16 × 8), c (16 × 8). a: rows l / 4 and l / 4 + 8 of columns 0 … 7
/// in a[0] and a[1], of columns 8 … 15 in a[2] and a[3]. b is held by columns as a is by rows: its
/// rows 0 … 7 in b0, 8 … 15 in b1. c: row l / 4 in c0 and c1, row l / 4 + 8 in c2 and c3.
template <class T>
__device__ __forceinline__ void mma(float& c0, float& c1, float& c2, float& c3,
                                    const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, BFloat16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// A float rounded to TensorFloat-32: ties to even by sm_90's one instruction, away from zero by
/// the four of older GPUs.
__device__ __forceinline__ uint32_t to_tf32(float v) {
  uint32_t rounded;
#if __CUDA_ARCH__ >= 900
  asm("cvt.rn.tf32.f32 %0, %1;\n" : "=r"(rounded) : "f"(v));
#else
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(rounded) : "f"(v));
#endif
  return rounded;
}
/// c += a b for a (16 × 8), b (8 × 8), c (16 × 8) of TensorFloat-32. a: row l / 4 in a0 and a2, row
/// l / 4 + 8 in a1 and a3; columns l % 4 in a0 and a1, l % 4 + 4 in a2 and a3. b: column l / 4, row
/// l % 4 in b0, l % 4 + 4 in b1. c as above.
__device__ __forceinline__ void mma_tf32(float& c0, float& c1, float& c2, float& c3, uint32_t a0,
                                         uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

}  // namespace norma
