#pragma once

#include "norma/core/cuda/mma.cuh"
#include "norma/core/cuda/reduce.cuh"
#include "norma/ops/attention/portable.h"
#include "norma/ops/attention/problem.cuh"

namespace norma::attention {

// How a block of threads multiplies tiles in shared memory, one of kTile rows, which are its own,
// by those of kStep rows that pass by: MmaTile by tensor cores for the half types, FmaTile by
// multiply-adds for float and double. Both are written for one thread, which holds
//   Scores v[i][j]: row row(i) and column col(j) of a kTile × kStep product of rows with rows
//   Out    v[i][j]: the same rows, column out_col(j) of kOut columns of sums of rows.
// kRowLanes neighbouring lanes share a row. Rows of shared memory are kPitch elements apart, by
// which the lanes' accesses meet in no bank.

__device__ __forceinline__ bool bit(uint32_t bits, int i) { return bits >> i & 1; }

template <class T, int kHeadDim, int kOutDim = kHeadDim>
struct MmaTile {
  using Element = T;
  using Acc = float;
  static constexpr int kTile = 64, kThreads = 128, kHead = kHeadDim, kOut = kOutDim;
  static constexpr int kStep = kHead > 128 ? 32 : 64;  // so that two blocks fit a multiprocessor
  static constexpr int kPitch = kHead + 8, kElements = kTile * kPitch;
  static constexpr int kStepElements = kStep * kPitch, kScratch = 0;
  static constexpr int kRows = 2, kCols = kStep / 4, kOutCols = kOut / 4, kRowLanes = 4, kRun = 2;
  struct Scores {
    float v[kRows][kCols] = {};
  };
  struct Out {
    float v[kRows][kOutCols] = {};
  };

  __device__ explicit MmaTile(T*) {}
  __device__ static int lane() { return threadIdx.x % kWarpSize; }
  __device__ static int first_row() { return threadIdx.x / kWarpSize * 16; }
  __device__ static int lane_of_row() { return threadIdx.x % kRowLanes; }
  __device__ static int row(int i) { return first_row() + lane() / 4 + 8 * i; }
  __device__ static int col(int j) { return j / 2 * 8 + lane() % 4 * 2 + j % 2; }
  __device__ static int out_col(int j) { return col(j); }

  /// s += a bᵀ for tiles a and b.
  __device__ void multiply_rows(Scores& s, const T* a, const T* b) const {
    const int l = lane();
    const T* a_row = a + (first_row() + l % 16) * kPitch + l / 16 * 8;
    const T* b_row = b + (l / 16 * 8 + l % 8) * kPitch + l / 8 % 2 * 8;
#pragma unroll
    for (int d = 0; d < kHead; d += 16) {
      uint32_t af[4], bf[4];
      load_matrices(af, a_row + d);
#pragma unroll
      for (int n = 0; n < kStep; n += 16) {
        load_matrices(bf, b_row + n * kPitch + d);
        const int j = n / 4;
        mma<T>(s.v[0][j], s.v[0][j + 1], s.v[1][j], s.v[1][j + 1], af, bf[0], bf[1]);
        mma<T>(s.v[0][j + 2], s.v[0][j + 3], s.v[1][j + 2], s.v[1][j + 3], af, bf[2], bf[3]);
      }
    }
  }
  /// out += p b for a tile b, of whose columns the first kOut count.
  __device__ void add_product(Out& out, const Scores& p, const T* b) const {
    const int l = lane();
    const T* b_row = b + l % 16 * kPitch + l / 16 * 8;
#pragma unroll
    for (int k = 0; k < kStep; k += 16) {
      const int i = k / 4;
      const uint32_t af[4] = {
          pack_pair<T>(p.v[0][i], p.v[0][i + 1]), pack_pair<T>(p.v[1][i], p.v[1][i + 1]),
          pack_pair<T>(p.v[0][i + 2], p.v[0][i + 3]), pack_pair<T>(p.v[1][i + 2], p.v[1][i + 3])};
#pragma unroll
      for (int n = 0; n < kOut; n += 16) {
        uint32_t bf[4];
        load_matrices_transposed(bf, b_row + k * kPitch + n);
        const int j = n / 4;
        mma<T>(out.v[0][j], out.v[0][j + 1], out.v[1][j], out.v[1][j + 1], af, bf[0], bf[1]);
        mma<T>(out.v[0][j + 2], out.v[0][j + 3], out.v[1][j + 2], out.v[1][j + 3], af, bf[2],
               bf[3]);
      }
    }
  }

  /// Bit i kCols + j: whether dropout keeps element (i, j) of scores whose rows are queries, row(i)
  /// being row row0 + row(i) of all, and whose columns are the keys from key0, a multiple of kStep.
  /// Four lanes share two rows of 16 columns, four groups of eight keys: each draws one for all.
  __device__ static uint32_t kept(const DropoutMask& mask, int64_t row0, int key0) {
    const int q = lane() % 4;
    uint32_t bits = 0;
#pragma unroll 1  // the generator's code once
    for (int c = 0; c < kStep / 8; c += 2) {
      uint32_t four = mask.kept(row0 + row(q % 2), key0 / 8 + c + q / 2) << 8 * q;
      four |= __shfl_xor_sync(0xffffffffu, four, 1);
      four |= __shfl_xor_sync(0xffffffffu, four, 2);
      four >>= 2 * q;  // this lane's two columns of each
      bits |= (four & 3) << 2 * c | (four >> 16 & 3) << (2 * c + 2) |
              (four >> 8 & 3) << (kCols + 2 * c) | (four >> 24 & 3) << (kCols + 2 * c + 2);
    }
    return bits;
  }
  /// The same where rows are keys from key0 and columns queries, those of row0 + col(j). Eight
  /// lanes share two groups of eight keys of four queries.
  __device__ static uint32_t kept_transposed(const DropoutMask& mask, int64_t row0, int key0) {
    const int r = lane() / 4;
    uint32_t bits = 0;
#pragma unroll 1
    for (int c = 0; c < kStep / 8; c += 2) {
      const int query = col(2 * (c + r / 4) + r / 2 % 2), key = first_row() + 8 * (r % 2);
      uint32_t four = mask.kept(row0 + query, (key0 + key) / 8) << 8 * (r % 4);
      four |= __shfl_xor_sync(0xffffffffu, four, 4);
      four |= __shfl_xor_sync(0xffffffffu, four, 8);
      const uint32_t other = __shfl_xor_sync(0xffffffffu, four, 16);
      const uint32_t low = (r < 4 ? four : other) >> r, high = (r < 4 ? other : four) >> r;
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          bits |= (low >> 8 * (i + 2 * e) & 1) << (i * kCols + 2 * c + e) |
                  (high >> 8 * (i + 2 * e) & 1) << (i * kCols + 2 * c + 2 + e);
    }
    return bits;
  }
};

/// Lanes hold what MmaTile's do. Both sides of a product take the sum's terms in one order, in
/// which a lane finds its terms of p among its own scores.
template <int kHeadDim, int kOutDim = kHeadDim>
struct Tf32Tile : MmaTile<float, kHeadDim, kOutDim> {
  using Base = MmaTile<float, kHeadDim, kOutDim>;
  using Base::Base, Base::kHead, Base::kOut, Base::kStep, Base::kTile, Base::lane, Base::first_row;
  using typename Base::Out, typename Base::Scores;
  static constexpr int kPitch = kHead + 4, kElements = kTile * kPitch;
  static constexpr int kStepElements = kStep * kPitch;

  __device__ void multiply_rows(Scores& s, const float* a, const float* b) const {
    const int g = lane() / 4, q = lane() % 4;
    const float* a_row = a + (first_row() + g) * kPitch + q;
    const float* b_row = b + g * kPitch + q;
#pragma unroll 4
    for (int d = 0; d < kHead; d += 8) {
      const uint32_t a0 = to_tf32(a_row[d]), a1 = to_tf32(a_row[8 * kPitch + d]);
      const uint32_t a2 = to_tf32(a_row[d + 4]), a3 = to_tf32(a_row[8 * kPitch + d + 4]);
#pragma unroll
      for (int n = 0; n < kStep; n += 8) {
        const int j = n / 4;
        mma_tf32(s.v[0][j], s.v[0][j + 1], s.v[1][j], s.v[1][j + 1], a0, a1, a2, a3,
                 to_tf32(b_row[n * kPitch + d]), to_tf32(b_row[n * kPitch + d + 4]));
      }
    }
  }
  __device__ void add_product(Out& out, const Scores& p, const float* b) const {
    const float* b_row = b + lane() % 4 * 2 * kPitch + lane() / 4;
#pragma unroll
    for (int k = 0; k < kStep; k += 8) {
      const int i = k / 4;
      const uint32_t a0 = to_tf32(p.v[0][i]), a1 = to_tf32(p.v[1][i]);
      const uint32_t a2 = to_tf32(p.v[0][i + 1]), a3 = to_tf32(p.v[1][i + 1]);
#pragma unroll
      for (int n = 0; n < kOut; n += 8) {
        const int j = n / 4;
        mma_tf32(out.v[0][j], out.v[0][j + 1], out.v[1][j], out.v[1][j + 1], a0, a1, a2, a3,
                 to_tf32(b_row[k * kPitch + n]), to_tf32(b_row[(k + 1) * kPitch + n]));
      }
    }
  }
};

template <class T, int kHeadDim, int kOutDim = kHeadDim>
struct FmaTile {
  using Element = T;
  using Acc = T;
  static constexpr int kHead = kHeadDim, kOut = kOutDim, kThreads = 256;
  /// So that four tiles, and scores, fit into shared memory.
  static constexpr int kTile = sizeof(T) * kHead <= 512 ? 64 : sizeof(T) * kHead <= 1024 ? 32 : 16;
  static constexpr int kStep = kTile;
  static constexpr int kWide = kWidest<T>, kPitch = kHead + kWide, kElements = kTile * kPitch;
  static constexpr int kStepElements = kElements;
  static constexpr int kRows = kTile / 16, kCols = kTile / 16, kOutCols = kOut / 16;
  static constexpr int kRowLanes = 16, kRun = kOutCols % kWide == 0 ? kWide : 2;
  static constexpr int kScorePitch = kTile + kWide, kScratch = kTile * kScorePitch;
  struct Scores {
    T v[kRows][kCols] = {};
  };
  struct Out {
    T v[kRows][kOutCols] = {};
  };

  __device__ explicit FmaTile(T* scratch) : scratch_(scratch) {}
  __device__ static int lane_of_row() { return threadIdx.x % kRowLanes; }
  __device__ static int row(int i) { return threadIdx.x / 16 * kRows + i; }
  __device__ static int col(int j) { return threadIdx.x % 16 + 16 * j; }
  __device__ static int out_col(int j) {
    return threadIdx.x % 16 * kRun + j / kRun * 16 * kRun + j % kRun;
  }

  __device__ void multiply_rows(Scores& s, const T* a, const T* b) const {
#pragma unroll 4
    for (int d = 0; d < kHead; d += kWide) {
      Packed<T, kWide> av[kRows], bv[kCols];
#pragma unroll
      for (int i = 0; i < kRows; ++i) av[i] = load<kWide>(a + row(i) * kPitch + d);
#pragma unroll
      for (int j = 0; j < kCols; ++j) bv[j] = load<kWide>(b + col(j) * kPitch + d);
#pragma unroll
      for (int e = 0; e < kWide; ++e)
#pragma unroll
        for (int i = 0; i < kRows; ++i)
#pragma unroll
          for (int j = 0; j < kCols; ++j) s.v[i][j] += av[i][e] * bv[j][e];
    }
  }
  /// The scores of a row go through shared memory to the 16 lanes that share it.
  __device__ void add_product(Out& out, const Scores& p, const T* b) const {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kCols; ++j) scratch_[row(i) * kScorePitch + col(j)] = p.v[i][j];
    __syncwarp();
#pragma unroll 2
    for (int k = 0; k < kTile; k += kWide) {
      Packed<T, kWide> pv[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) pv[i] = load<kWide>(scratch_ + row(i) * kScorePitch + k);
#pragma unroll
      for (int e = 0; e < kWide; ++e)
#pragma unroll
        for (int j = 0; j < kOutCols; j += kRun) {
          const auto bv = load<kRun>(b + (k + e) * kPitch + out_col(j));
#pragma unroll
          for (int i = 0; i < kRows; ++i)
#pragma unroll
            for (int r = 0; r < kRun; ++r) out.v[i][j + r] += pv[i][e] * bv[r];
        }
    }
  }

  /// As in MmaTile. Eight neighbouring lanes hold the eight keys of kCols groups.
  __device__ static uint32_t kept(const DropoutMask& mask, int64_t row0, int key0) {
    const int lane = threadIdx.x % kWarpSize, place = lane % 8;
    uint32_t bits = 0;
#pragma unroll 1
    for (int i = 0; i < kRows; ++i) {
      const uint32_t mine = mask.kept(row0 + row(i), (key0 + col(place % kCols)) / 8);
#pragma unroll
      for (int j = 0; j < kCols; ++j) {
        const uint32_t eight = __shfl_sync(0xffffffffu, mine, lane - place + j);
        bits |= (eight >> place & 1) << (i * kCols + j);
      }
    }
    return bits;
  }
  /// A thread's rows are neighbouring keys of one group.
  __device__ static uint32_t kept_transposed(const DropoutMask& mask, int64_t row0, int key0) {
    uint32_t bits = 0;
#pragma unroll 1
    for (int j = 0; j < kCols; ++j) {
      const uint32_t eight = mask.kept(row0 + col(j), (key0 + row(0)) / 8) >> row(0) % 8;
#pragma unroll
      for (int i = 0; i < kRows; ++i) bits |= (eight >> i & 1) << (i * kCols + j);
    }
    return bits;
  }

 private:
  T* scratch_;
};

/// The tile that serves T. Sums of more than 128 columns a row would not fit into registers where
/// there are two of them (kOutDim).
template <class T, int kHead, int kOut = kHead>
struct TileFor {
  using type = std::conditional_t<is_half<T>, MmaTile<T, kHead, kOut>, FmaTile<T, kHead, kOut>>;
};
template <int kHead, int kOut>
struct TileFor<Tf32, kHead, kOut> {
  using type = Tf32Tile<kHead, kOut>;
};
template <class T, int kHead, int kOut = kHead>
using TileOf = typename TileFor<T, kHead, kOut>::type;

/// `rows` rows of one head to shared memory, and zeros up to kCount; zeros too beyond `dim`.
template <class Tile, int kCount, class T>
__device__ void load_tile(T* to, const T* from, int64_t stride, int rows, int dim, bool wide) {
  constexpr int kWide = kWidest<T>, kPieces = Tile::kHead / kWide;
#pragma unroll 4
  for (int n = threadIdx.x; n < kCount * kPieces; n += Tile::kThreads) {
    const int r = n / kPieces, c = n % kPieces * kWide;
    Packed<T, kWide> v{};
    if (r < rows && c < dim) {
      const T* source = from + r * stride + c;
      v = wide && c + kWide <= dim ? load<kWide>(source) : load_some<kWide>(source, dim - c, T{});
    }
    store(to + r * Tile::kPitch + c, v);
  }
}

/// One row of sums, times `factor`, in T.
template <class Tile, class T, class Acc>
__device__ void store_row(T* to, const Acc (&v)[Tile::kOutCols], Acc factor, int dim, bool wide) {
  constexpr int kRun = Tile::kRun;
#pragma unroll
  for (int j = 0; j < Tile::kOutCols; j += kRun) {
    const int c = Tile::out_col(j);
    Packed<T, kRun> packed;
#pragma unroll
    for (int e = 0; e < kRun; ++e) packed[e] = convert<T>(v[j + e] * factor);
    if (wide && c + kRun <= dim)
      store(to + c, packed);
    else
      store_some<kRun>(to + c, packed, dim - c);
  }
}

}  // namespace norma::attention
