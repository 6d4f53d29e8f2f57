#pragma once

#include <algorithm>
#include <cstdint>

#include "norma/core/cuda/launch.cuh"
#include "norma/core/cuda/mma.cuh"
#include "norma/core/cuda/packed.cuh"
#include "norma/core/view.h"
#include "norma/ops/matmul/small_plan.h"

// What the kernels for small products of tf32 share: a warp makes 32 × 32 elements straight from
// memory, 16 terms at a time.

namespace norma::small {

constexpr int kWarps = kSmallWarps, kThreads = kWarps * kWarpSize, kTile = kSmallTile,
              kDepth = kSmallDepth;
constexpr int kPitch = kTile + 8;  // of sums in shared memory, by which lanes meet in no bank
constexpr int kQuads = kTile * kTile / 4;  // of a tile, of which a thread finishes one at a time
using Four = Packed<float, 4>;

struct Operand {
  const float* data;
  int stride;
  int count;   ///< rows of the product, or columns
  bool along;  ///< the sum runs along memory; else across
};

inline bool is_wide(const void* data, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 4 == 0;
}
/// A lane's 16 elements of 32 rows and 16 terms: at(r, e) is term 4 (lane % 4) + e of row
/// row_of(r, lane / 4).
template <bool kAlong>
struct Piece {
  Packed<float, 4> v[4];

  __device__ float at(int r, int e) const { return kAlong ? v[r][e] : v[e][r]; }
  __device__ static int row_of(int r, int g) { return kAlong ? 8 * r + g : 4 * g + r; }
};

template <bool kAlong, bool kWhole>
class Loader {
 public:
  __device__ Loader(const Operand& x, int first_row, int depth)
      : data_(x.data), stride_(x.stride), first_(first_row), count_(x.count), depth_(depth) {
    const int g = threadIdx.x % kWarpSize / 4, term = threadIdx.x % 4 * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i)  // beyond the rows, some again: nobody stores what comes of them
      offset_[i] = kAlong ? min(first_row + 8 * i + g, x.count - 1) * x.stride + term
                          : (term + i) * x.stride + min(first_row + 4 * g, x.count - 4);
  }
  __device__ __forceinline__ void load(Piece<kAlong>& piece, int from) const {
    if constexpr (kWhole) {
      const float* p = data_ + (kAlong ? from : from * stride_);
#pragma unroll
      for (int i = 0; i < 4; ++i) piece.v[i] = norma::load<4>(p + offset_[i]);
    } else {
      const int g = threadIdx.x % kWarpSize / 4, term = from + threadIdx.x % 4 * 4;
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int r = kAlong ? i : e, t = term + (kAlong ? e : i);
          const int row = min(first_ + Piece<kAlong>::row_of(r, g), count_ - 1);
          piece.v[i][e] = t < depth_ ? data_[kAlong ? row * stride_ + t : t * stride_ + row] : 0.f;
        }
    }
  }

 private:
  const float* data_;
  int stride_, first_, count_, depth_, offset_[4];
};

/// A warp's terms of its tile: c as mma_tf32 holds it, and Σ a of its rows.
struct Part {
  float c[2][4][4] = {}, sums[4] = {};
};

/// 16 terms: tensor cores take them in an order of their own, the same on both sides.
template <bool kAlongA, bool kAlongB>
__device__ __forceinline__ void add_terms(Part& part, const Piece<kAlongA>& a,
                                          const Piece<kAlongB>& b, bool with_sums) {
#pragma unroll
  for (int s = 0; s < 4; s += 2) {
    uint32_t af[4][2], bf[4][2];
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        af[r][h] = to_tf32(a.at(r, s + h)), bf[r][h] = to_tf32(b.at(r, s + h));
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        mma_tf32(part.c[i][j][0], part.c[i][j][1], part.c[i][j][2], part.c[i][j][3], af[2 * i][0],
                 af[2 * i + 1][0], af[2 * i][1], af[2 * i + 1][1], bf[j][0], bf[j][1]);
  }
  if (with_sums)
#pragma unroll
    for (int r = 0; r < 4; ++r)
      part.sums[r] += (a.at(r, 0) + a.at(r, 1)) + (a.at(r, 2) + a.at(r, 3));
}
/// The terms from `first` on, 16 of every `step`. `begin` is called before what the kernel before
/// may have written is asked for: all, or where `early` the left factor alone.
template <bool kAlongA, bool kAlongB, bool kWhole, class F>
__device__ __forceinline__ void add_terms(Part& part, const Loader<kAlongA, kWhole>& load_a,
                                          const Loader<kAlongB, kWhole>& load_b, int first,
                                          int step, int depth, bool with_sums, bool early,
                                          const F& begin) {
  Piece<kAlongA> a[2];  // two on their way
  Piece<kAlongB> b[2];
  if (!early) begin();
  if (first < depth) load_b.load(b[0], first);
  if (first + step < depth) load_b.load(b[1], first + step);
  if (early) begin();
#pragma unroll 1
  for (bool again = false; first < depth; first += 2 * step, again = true) {
    const bool both = first + step < depth;
    if (again) load_b.load(b[0], first);
    if (again && both) load_b.load(b[1], first + step);
    load_a.load(a[0], first);
    if (both) load_a.load(a[1], first + step);
    add_terms(part, a[0], b[0], with_sums);
    if (both) add_terms(part, a[1], b[1], with_sums);
  }
}

using TilePart = float[kTile][kPitch];

/// A warp's part of its tile, to shared memory. Where packets are of four, lanes of odd g write the
/// other one first, so that no two of a quarter warp meet in a bank.
template <bool kAlongA, bool kAlongB>
__device__ __forceinline__ void store_part(const Part& part, TilePart& tile) {
  const int g = threadIdx.x % kWarpSize / 4, q = threadIdx.x % 4;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    float* to = tile[Piece<kAlongA>::row_of(r, g)];
    const auto& c = part.c[r / 2];
    const int h = r % 2 * 2;
#pragma unroll
    for (int e = 0; e < 2; ++e)
      if constexpr (!kAlongB) {
        const bool second = e != g % 2;
        Four v;
#pragma unroll
        for (int j = 0; j < 4; ++j) v[j] = second ? c[j][h + 1] : c[j][h];
        store(to + 4 * (2 * q + second), v);
      }
    if constexpr (kAlongB)
#pragma unroll
      for (int j = 0; j < 4; ++j) store(to + 8 * j + 2 * q, Packed<float, 2>{c[j][h], c[j][h + 1]});
  }
}
/// The sums of a tile's parts, one a warp of `slices`, of a quad.
__device__ __forceinline__ Four join_parts(const TilePart* parts, int slices, int row, int col) {
  Four sum{};
#pragma unroll 4
  for (int s = 0; s < slices; ++s) {
    const Four v = load<4>(&parts[s][row][col]);
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[e] += v[e];
  }
  return sum;
}

}  // namespace norma::small
