#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "norma/core/cuda/async_copy.cuh"
#include "norma/core/cuda/launch.cuh"
#include "norma/core/cuda/numeric.cuh"
#include "norma/core/cuda/packed.cuh"
#include "norma/core/cuda/reduce.cuh"
#include "norma/core/cuda/scratch.h"
#include "norma/ops/ssd/kernels.h"

namespace norma::ssd_cuda {

// Chunks of 64 steps; every product is one of the tensor cores', m16n8k16 on bf16 or fp16 with sums
// in fp32. What a product reads is rounded to T, everything else stays in fp32. An fp32 operand is
// the sum of three in bf16, which hold its 24 bits, and a product the six of theirs above 2^-24: as
// many cycles as three in tf32, and a bit or two more exact.

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

/// Heads of a group that one block works through: those with the shortest time on 132
/// multiprocessors of `blocks` blocks each, where what heads share, c bᵀ, costs as much as a head.
inline int heads_of_a_block(const Sizes& s, int blocks) {
  int best = s.shared();
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int parts = 1; parts <= s.shared(); ++parts) {
    const int heads = ceil_div(s.shared(), parts);
    const int64_t all = s.batch * s.chunks * s.groups * ceil_div(s.shared(), heads);
    const int64_t time = ceil_div(all, int64_t{132} * blocks) * (heads + 1);
    if (time < least) least = time, best = heads;
  }
  return best;
}

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

/// A 16 × 16 operand, a lane's eight numbers: pair i is register i of the instruction.
template <class T>
struct Block {
  uint32_t r[4];
};
template <>
struct Block<float> {
  float v[8];
};

/// A's block at (m, k), stored a row m.
template <class T>
__device__ __forceinline__ void load_a(Block<T>& to, const T* a, int stride, int m, int k) {
  const int l = lane_of(), mat = l / 8;
  if constexpr (sizeof(T) == 2) {
    load_matrices(to.r, a + (m + mat % 2 * 8 + l % 8) * stride + k + mat / 2 * 8);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto pair = *reinterpret_cast<const float2*>(a + (m + l / 4 + i % 2 * 8) * stride + k +
                                                         l % 4 * 2 + i / 2 * 8);
      to.v[2 * i] = pair.x, to.v[2 * i + 1] = pair.y;
    }
  }
}
/// The same, stored a row k.
template <class T>
__device__ __forceinline__ void load_a_turned(Block<T>& to, const T* a, int stride, int m, int k) {
  const int l = lane_of(), mat = l / 8;
  if constexpr (sizeof(T) == 2) {
    load_matrices_turned(to.r, a + (k + mat / 2 * 8 + l % 8) * stride + m + mat % 2 * 8);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      to.v[i] = a[(k + l % 4 * 2 + i / 4 * 8 + i % 2) * stride + m + l / 4 + i / 2 % 2 * 8];
  }
}
/// B's block at (k, n), stored a row n: two operands of eight columns.
template <class T>
__device__ __forceinline__ void load_b(Block<T>& to, const T* b, int stride, int k, int n) {
  const int l = lane_of(), mat = l / 8;
  if constexpr (sizeof(T) == 2) {
    load_matrices(to.r, b + (n + mat / 2 * 8 + l % 8) * stride + k + mat % 2 * 8);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto pair = *reinterpret_cast<const float2*>(b + (n + l / 4 + i / 2 * 8) * stride + k +
                                                         l % 4 * 2 + i % 2 * 8);
      to.v[2 * i] = pair.x, to.v[2 * i + 1] = pair.y;
    }
  }
}
/// The same, stored a row k.
template <class T>
__device__ __forceinline__ void load_b_turned(Block<T>& to, const T* b, int stride, int k, int n) {
  const int l = lane_of(), mat = l / 8;
  if constexpr (sizeof(T) == 2) {
    load_matrices_turned(to.r, b + (k + mat % 2 * 8 + l % 8) * stride + n + mat / 2 * 8);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      to.v[i] = b[(k + l % 4 * 2 + i / 2 % 2 * 8 + i % 2) * stride + n + l / 4 + i / 4 * 8];
  }
}

struct Pair {
  float low, high;
};
template <class T>
__device__ __forceinline__ Pair unpack(uint32_t r) {
  const float2 f = unpack_pair<T>(r);
  return {f.x, f.y};
}
template <class T>
__device__ __forceinline__ Pair read_pair(const T* from) {
  if constexpr (sizeof(T) == 2) {
    return unpack<T>(*reinterpret_cast<const uint32_t*>(from));
  } else {
    const auto pair = *reinterpret_cast<const float2*>(from);
    return {pair.x, pair.y};
  }
}
template <class T>
__device__ __forceinline__ void put_pair(T* to, float low, float high) {
  if constexpr (sizeof(T) == 2)
    *reinterpret_cast<uint32_t*>(to) = pack_pair<T>(low, high);
  else
    *reinterpret_cast<float2*>(to) = make_float2(low, high);
}
/// Pair i of an operand.
template <class T>
__device__ __forceinline__ void set_pair(Block<T>& block, int i, float low, float high) {
  if constexpr (sizeof(T) == 2)
    block.r[i] = pack_pair<T>(low, high);
  else
    block.v[2 * i] = low, block.v[2 * i + 1] = high;
}
template <class T>
__device__ __forceinline__ Pair pair_of(const Block<T>& block, int i) {
  if constexpr (sizeof(T) == 2)
    return unpack<T>(block.r[i]);
  else
    return {block.v[2 * i], block.v[2 * i + 1]};
}
/// A's columns times eight factors from `f` on: those at k of load_a.
template <class T>
__device__ __forceinline__ void scale_columns(Block<T>& a, const float* f) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Pair p = pair_of(a, i);
    set_pair(a, i, p.low * f[i / 2 * 8], p.high * f[i / 2 * 8 + 1]);
  }
}
/// A's rows g and g + 8 of a lane times a factor each.
template <class T>
__device__ __forceinline__ void scale_rows(Block<T>& a, const float (&f)[2]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Pair p = pair_of(a, i);
    set_pair(a, i, p.low * f[i % 2], p.high * f[i % 2]);
  }
}

template <class T>
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
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
/// A warp's 16 × 8 kTiles block of sums, rounded to a half type, into rows of shared memory.
template <class T, int kTiles>
__device__ __forceinline__ void put_tiles(T* to, int stride, const float (&v)[kTiles][4]) {
  const int l = lane_of();
#pragma unroll
  for (int tile = 0; tile < kTiles; tile += 2) {
#if __CUDA_ARCH__ >= 900
    const int mat = l / 8;
    const auto at = static_cast<uint32_t>(
        __cvta_generic_to_shared(to + (mat % 2 * 8 + l % 8) * stride + tile * 8 + mat / 2 * 8));
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(at),
                 "r"(pack_pair<T>(v[tile][0], v[tile][1])),
                 "r"(pack_pair<T>(v[tile][2], v[tile][3])),
                 "r"(pack_pair<T>(v[tile + 1][0], v[tile + 1][1])),
                 "r"(pack_pair<T>(v[tile + 1][2], v[tile + 1][3]))
                 : "memory");
#else
#pragma unroll
    for (int i = 0; i < 4; ++i)
      put_pair(to + (l / 4 + i % 2 * 8) * stride + (tile + i / 2) * 8 + l % 4 * 2,
               v[tile + i / 2][i % 2 * 2], v[tile + i / 2][i % 2 * 2 + 1]);
#endif
  }
}
/// A warp's 16 × 8 kTiles block of sums, rounded to T, to where row(0 … 15) says, or nowhere where
/// that is null. Half types by way of `stage`, the block's place in shared memory, 16 bytes a lane:
/// straight from the registers a store would fill half sectors of eight rows.
template <class T, int kTiles, class F>
__device__ __forceinline__ void store_tiles(T* stage, int stride, const float (&v)[kTiles][4],
                                            const F& row) {
  const int l = lane_of();
  if constexpr (sizeof(T) == 2) {
    constexpr int kRuns = kTiles;
    __syncwarp();
    put_tiles(stage, stride, v);
    __syncwarp();
#pragma unroll
    for (int i = l; i < 16 * kRuns; i += kWarpSize) {
      T* to = row(i / kRuns);
      if (to)
        *reinterpret_cast<uint4*>(to + i % kRuns * 8) =
            *reinterpret_cast<const uint4*>(stage + i / kRuns * stride + i % kRuns * 8);
    }
  } else {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      T* to = row(l / 4 + half * 8);
      if (!to) continue;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
        put_pair(to + tile * 8 + l % 4 * 2, v[tile][2 * half], v[tile][2 * half + 1]);
    }
  }
}
/// Rows of a stage: none where none is used.
template <class T>
inline constexpr int kStage = sizeof(T) == 2 ? kQ : 1;

/// Two numbers as three in bf16 each, the largest first.
__device__ __forceinline__ void split_pair(float low, float high, uint32_t (&parts)[3]) {
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    parts[i] = pack_pair<BFloat16>(low, high);
    const Pair taken = unpack<BFloat16>(parts[i]);
    low -= taken.low, high -= taken.high;
  }
}
/// c += A's block times one of B's two operands, 16 × 8.
template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const Block<T>& a, const Block<T>& b,
                                             int which) {
  if constexpr (sizeof(T) == 2) {
    multiply<T>(c, a.r, b.r[2 * which], b.r[2 * which + 1]);
  } else {
    uint32_t left[3][4], right[3][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t parts[3];
      split_pair(a.v[2 * i], a.v[2 * i + 1], parts);
#pragma unroll
      for (int part = 0; part < 3; ++part) left[part][i] = parts[part];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t parts[3];
      split_pair(b.v[4 * which + 2 * i], b.v[4 * which + 2 * i + 1], parts);
#pragma unroll
      for (int part = 0; part < 3; ++part) right[part][i] = parts[part];
    }
#pragma unroll
    for (int small = 2; small >= 0; --small)  // the least first
#pragma unroll
      for (int part = small; part >= 0; --part)
        multiply<BFloat16>(c, left[part], right[small - part][0], right[small - part][1]);
  }
}

/// c += A's block times B's row of blocks at (k, n), which is stored a row n.
template <class T, int kTiles>
__device__ __forceinline__ void multiply_tiles(float (&c)[kTiles][4], const Block<T>& a, const T* b,
                                               int stride, int k, int n) {
#pragma unroll
  for (int tile = 0; tile < kTiles; tile += 2) {
    Block<T> two;
    load_b(two, b, stride, k, n + tile * 8);
    multiply_add(c[tile], a, two, 0);
    multiply_add(c[tile + 1], a, two, 1);
  }
}
/// The same, stored a row k.
template <class T, int kTiles>
__device__ __forceinline__ void multiply_tiles_turned(float (&c)[kTiles][4], const Block<T>& a,
                                                      const T* b, int stride, int k, int n) {
#pragma unroll
  for (int tile = 0; tile < kTiles; tile += 2) {
    Block<T> two;
    load_b_turned(two, b, stride, k, n + tile * 8);
    multiply_add(c[tile], a, two, 0);
    multiply_add(c[tile + 1], a, two, 1);
  }
}

constexpr float kLog2E = 1.4426950408889634f;
__device__ __forceinline__ float exp_fast(float v) { return exp2_fast(v * kLog2E); }

/// threadIdx.x, in a loop read again each time: else the compiler keeps all addresses that follow
/// from it in registers, and has too few.
__device__ __forceinline__ int thread_anew() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}
/// 64 rows of kColumns from step t0 on, by kThreads threads; zeros beyond the end.
template <int kColumns, int kThreads, class T>
__device__ __forceinline__ void copy_rows(T* to, const Sequence<const T>& from, int64_t batch,
                                          int64_t t0, int64_t length, int64_t column,
                                          int thread = int(threadIdx.x)) {
  constexpr int kEach = kWidest<T>, kRuns = kColumns / kEach, kRows = kThreads / kRuns;
  static_assert(kThreads % kRuns == 0 && kQ % kRows == 0);
  const int row = thread / kRuns, run = thread % kRuns;
  const T* at = from.row(batch, t0 + row) + column + run * kEach;
  const int left = int(min(length - t0, int64_t{kQ})) - row;
  to += row * (kColumns + kPad) + run * kEach;
#pragma unroll
  for (int i = 0; i < kQ; i += kRows)
    copy_16(to + i * (kColumns + kPad), at + i * from.row_stride, i < left);
}
/// A dense (kP, kColumns) matrix likewise.
template <int kColumns, int kThreads, class T>
__device__ __forceinline__ void copy_matrix(T* to, const T* from, int thread = int(threadIdx.x)) {
  constexpr int kEach = kWidest<T>, kRuns = kColumns / kEach, kRows = kThreads / kRuns;
  static_assert(kThreads % kRuns == 0 && kP % kRows == 0);
  const int row = thread / kRuns, run = thread % kRuns;
  from += row * kColumns + run * kEach, to += row * (kColumns + kPad) + run * kEach;
#pragma unroll
  for (int i = 0; i < kP; i += kRows)
    copy_16(to + i * (kColumns + kPad), from + i * kColumns, true);
}

/// Δ, its slope in dt, and in each chunk the running sum of Δ a / ln 2, s here, so that 2^s is what
/// a state fades by: (B, H, padded T) each. Beside them what heads have: d as (H, P), which the
/// copy engine brings, and a itself.
struct Steps {
  float *delta, *slope, *sum, *skip, *rate;

  static int64_t numbers(const Sizes& s) {
    return 3 * s.batch * s.heads * s.padded() + s.heads * (kP + 1);
  }
  static Steps in(float* memory, const Sizes& s) {
    const int64_t each = s.batch * s.heads * s.padded();
    float* skip = memory + 3 * each;
    return {memory, memory + each, memory + 2 * each, skip, skip + s.heads * kP};
  }
  __device__ static int64_t at(const Sizes& s, int64_t batch, int head, int64_t t) {
    return (batch * s.heads + head) * s.padded() + t;
  }
};
/// A chunk's numbers of one head, by the first 16 threads.
__device__ __forceinline__ void copy_steps(float* to, const float* from,
                                           int thread = int(threadIdx.x)) {
  if (thread < kQ / 4) copy_16(to + thread * 4, from + thread * 4, true);
}
/// What the states' kernel needs for one direction: states along time from x and b, or their
/// gradients against it from dy and c.
template <class T>
struct StateSide {
  Sequence<const T> rows, columns;
  const float* first;  // (B, H, P, N) or null
  T* states;           // (B, chunks, H, P, N): before each chunk, in the direction of the walk
  float* last;         // (B, H, P, N) or null
};

/// Time cut into pieces of whole chunks, wanted as many, where heads are too few.
struct Segments {
  int64_t each, count;

  /// At least four chunks each, for all but the last are read twice.
  Segments(const Sizes& s, int64_t wanted) {
    wanted = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, s.chunks / 4));
    each = ceil_div(s.chunks, std::min(wanted, kMost));
    count = ceil_div(s.chunks, each);
  }
  static constexpr int64_t kMost = 128;
  /// Of the states at their beginnings, (sides, B, H, count, P, N).
  int64_t numbers(const Sizes& s, int sides, int n) const {
    return sides * s.batch * s.heads * count * kP * n;
  }
};

/// What they are made of.
struct StepRules {
  const float *a, *d, *dt_bias;
  bool log_a, d_a_head, softplus;  // d (H), else (H, P)
  float dt_min, dt_max;

  template <class Args>
  static StepRules of(const Args& k) {
    return {k.a.template as<float>(),
            k.d.template as<float>(),
            k.dt_bias.template as<float>(),
            k.log_a,
            k.d.n == k.a.n,
            k.dt_softplus,
            float(k.dt_min),
            float(k.dt_max)};
  }
};
template <class T>
void compute_steps(Cuda on, const Sizes& size, const Sequence<const T>& dt, const StepRules& rules,
                   const Steps& steps);
/// The states at the segments' beginnings, in the direction of the walk. Both directions in one
/// launch where there are two, here and below.
template <class T>
void carry_states(Cuda on, const Sizes& size, int n, const Steps& steps, const StateSide<T>& along,
                  const StateSide<T>* against, const Segments& segments, float* carried);
template <class T>
void compute_states(Cuda on, const Sizes& size, int n, const Steps& steps,
                    const StateSide<T>& along, const StateSide<T>* against);

/// The same on Hopper, of half types; false where it is another GPU, or strides that its copy
/// engine cannot read.
template <class T, int kN>
bool compute_states_hopper(Cuda on, const Sizes& size, const Steps& steps,
                           const StateSide<T>& along, const StateSide<T>* against);

/// The forward pass of half types on Hopper, of which `steps` are known; false where it is another
/// GPU, or strides that its copy engine cannot read.
template <class T, int kN>
bool forward_hopper(Cuda on, const SsdForwardArgs& k, const Sizes& size, const Steps& steps);

}  // namespace norma::ssd_cuda
