#include <algorithm>

#include "norma/core/cuda/mma.cuh"
#include "norma/core/cuda/packed.cuh"
#include "norma/core/cuda/reduce.cuh"
#include "norma/core/tensor.h"
#include "norma/ops/elementwise/functions_cuda.cuh"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/matmul/small.h"

namespace norma {
namespace {

// Small products in tf32. A launch costs more than the arithmetic, and a warp that is nearly alone
// on its multiprocessor takes 5 cycles an instruction: so few instructions, no tiles in shared
// memory. A warp makes 32 × 32 elements straight from memory, 16 terms at a time, and the warps of
// a block share the sum's terms; their parts meet in shared memory in one order. Two products share
// a launch: what a layer's input gets and what its weight gets would not fill a GPU one after the
// other.

constexpr int kWarps = 16, kThreads = kWarps * kWarpSize, kTile = 32, kDepth = 16;
constexpr int kPitch = kTile + 8;  // of sums in shared memory, by which lanes meet in no bank
// Larger ones are cuBLASLt's, whose tiles read less.
constexpr int64_t kMostTerms = int64_t{1} << 26, kMostDepth = 4096;
constexpr int kBlocksAtOnce = 132;  // a GPU's multiprocessors; by the sizes alone all the same

struct Operand {
  const float* data;
  int stride;
  int count;   ///< rows of the product, or columns
  bool along;  ///< the sum runs along memory; else across
};

struct SmallProduct {
  Operand a, b;
  const float* bias;
  float *c, *pre, *sums;
  int64_t pre_stride;
  int depth;
  MatmulEpilogue epilogue;
  bool whole, wide_out;      ///< whole: nothing but aligned pieces of 4, and of 16 terms
  int row_tiles, col_tiles;  ///< of a block; kWarps / (row_tiles col_tiles) warps share a tile
  int col_blocks, blocks;

  __host__ __device__ int tiles() const { return row_tiles * col_tiles; }
  __host__ __device__ int split() const { return kWarps / tiles(); }
};
struct SmallProducts {
  SmallProduct products[2];
};

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

using Parts = float[kWarps][kTile][kPitch];

/// This warp's part of the tile at (row, col), to shared memory.
template <bool kAlongA, bool kAlongB, bool kWhole>
__device__ __forceinline__ void make_part(const SmallProduct& p, int row, int col, int slice,
                                          bool with_sums, Parts& parts, float (&part_sums)[kTile]) {
  const Loader<kAlongA, kWhole> load_a(p.a, row, p.depth);
  const Loader<kAlongB, kWhole> load_b(p.b, col, p.depth);
  Part part;
  const int step = p.split() * kDepth;
#pragma unroll 1
  for (int first = slice * kDepth; first < p.depth; first += 2 * step) {
    Piece<kAlongA> a[2];  // two on their way
    Piece<kAlongB> b[2];
    const bool both = first + step < p.depth;
    load_a.load(a[0], first), load_b.load(b[0], first);
    if (both) load_a.load(a[1], first + step), load_b.load(b[1], first + step);
    add_terms(part, a[0], b[0], with_sums);
    if (both) add_terms(part, a[1], b[1], with_sums);
  }
  const int warp = threadIdx.x / kWarpSize, g = threadIdx.x % kWarpSize / 4, q = threadIdx.x % 4;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    float* to = parts[warp][Piece<kAlongA>::row_of(r, g)];
    const auto& c = part.c[r / 2];
    const int h = r % 2 * 2;
#pragma unroll
    for (int e = 0; e < 2; ++e)
      if constexpr (!kAlongB)
        store(to + 4 * (2 * q + e),
              Packed<float, 4>{c[0][h + e], c[1][h + e], c[2][h + e], c[3][h + e]});
    if constexpr (kAlongB)
#pragma unroll
      for (int j = 0; j < 4; ++j) store(to + 8 * j + 2 * q, Packed<float, 2>{c[j][h], c[j][h + 1]});
  }
  if (!with_sums) return;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const float sum = warp_sum<4>(part.sums[r]);
    if (q == 0) part_sums[Piece<kAlongA>::row_of(r, g)] = sum;
  }
}

/// Two neighbouring elements of c from their sums.
__device__ __forceinline__ void finish(const SmallProduct& p, int row, int col,
                                       Packed<float, 2> v) {
  const int n = min(2, p.b.count - col);
  float* c = p.c + int64_t{row} * p.b.count + col;
  float* pre = p.pre + row * p.pre_stride + col;
  const auto get = [&](const float* from) {
    return p.wide_out ? load<2>(from) : load_some<2>(from, n, 0.f);
  };
  const auto put = [&](float* to) { p.wide_out ? store(to, v) : store_some<2>(to, v, n); };
  if (p.bias) {
    const auto bias = get(p.bias + col);
    v[0] += bias[0], v[1] += bias[1];
  }
  if (p.epilogue == MatmulEpilogue::gelu) {
    put(pre);
#pragma unroll
    for (float& e : v) e = evaluate(UnaryFunction::gelu_tanh, e);
  } else if (p.epilogue == MatmulEpilogue::gelu_backward) {
    const auto u = get(pre);
#pragma unroll
    for (int e = 0; e < 2; ++e) v[e] = evaluate(BinaryFunction::gelu_tanh_backward, v[e], u[e]);
  }
  put(c);
}

__global__ void __launch_bounds__(kThreads, 1)
    matmul_small_kernel(const __grid_constant__ SmallProducts k) {
  extern __shared__ __align__(16) float shared[];
  __shared__ float part_sums[kWarps][kTile];
  wait_for_previous_kernel();
  const int first_blocks = k.products[0].blocks;
  const bool second = static_cast<int>(blockIdx.x) >= first_blocks;
  const SmallProduct& p = k.products[second];
  const int block = static_cast<int>(blockIdx.x) - (second ? first_blocks : 0);
  const int first_col = block % p.col_blocks * p.col_tiles * kTile;
  const int first_row = block / p.col_blocks * p.row_tiles * kTile;
  const bool with_sums = p.sums && first_col == 0;
  Parts& parts = *reinterpret_cast<Parts*>(shared);
  {
    const int warp = threadIdx.x / kWarpSize, tile = warp / p.split(), slice = warp % p.split();
    const int row = first_row + tile % p.row_tiles * kTile;
    const int col = first_col + tile / p.row_tiles * kTile;
    const auto go = [&]<bool kAlongA, bool kAlongB>() {
      if (p.whole)
        make_part<kAlongA, kAlongB, true>(p, row, col, slice, with_sums, parts, part_sums[warp]);
      else
        make_part<kAlongA, kAlongB, false>(p, row, col, slice, with_sums, parts, part_sums[warp]);
    };
    if (p.b.along)
      go.template operator()<true, true>();
    else if (p.a.along)
      go.template operator()<true, false>();
    else
      go.template operator()<false, false>();
  }
  __syncthreads();

  const int split = p.split(), r = threadIdx.x / 16, c = threadIdx.x % 16 * 2;
#pragma unroll 1
  for (int tile = 0; tile < p.tiles(); ++tile) {
    Packed<float, 2> sum{};
#pragma unroll 4
    for (int s = 0; s < split; ++s) {
      const auto v = load<2>(&parts[tile * split + s][r][c]);
      sum[0] += v[0], sum[1] += v[1];
    }
    const int row = first_row + tile % p.row_tiles * kTile + r;
    const int col = first_col + tile / p.row_tiles * kTile + c;
    if (row < p.a.count && col < p.b.count) finish(p, row, col, sum);
  }
  if (with_sums && threadIdx.x < p.row_tiles * kTile) {
    const int row = first_row + static_cast<int>(threadIdx.x);
    float sum = 0;
#pragma unroll 4
    for (int s = 0; s < split; ++s)
      sum += part_sums[threadIdx.x / kTile * split + s][threadIdx.x % kTile];
    if (row < p.a.count) p.sums[row] = sum;
  }
}

bool is_wide(const void* data, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 4 == 0;
}

/// The strides of its terms and rows.
Operand operand(const ConstView& x, int64_t terms, int64_t rows, int64_t depth, int64_t count) {
  const bool along = (terms == 1 || depth == 1) && (rows >= depth || count == 1);
  return {.data = x.as<float>(),
          .stride = static_cast<int>(along ? rows : terms),
          .count = static_cast<int>(count),
          .along = along};
}
bool is_whole(const Operand& x, int depth) {
  return is_wide(x.data, x.stride) && depth % kDepth == 0 && (x.along || x.count % 4 == 0);
}

/// False where it is not for this kernel.
bool describe(const MatmulArgs& k, SmallProduct& p) {
  const int d = k.c.shape.dim();
  const int64_t n = k.c.shape[d - 2], m = k.c.shape[d - 1], depth = k.a.shape[d - 1];
  if (k.a.dtype != float32 || k.c.dtype != float32 || k.c.shape.numel() != n * m) return false;
  if (n * m == 0 || depth == 0 || depth > kMostDepth || n * m * depth > kMostTerms) return false;
  for (const ConstView* x : {&k.a, &k.b})  // places are 32-bit numbers
    for (int i : {d - 2, d - 1})
      if (x->strides[i] * std::max(depth, std::max(n, m)) >= int64_t{1} << 31) return false;
  p.a = operand(k.a, k.a.strides[d - 1], k.a.strides[d - 2], depth, n);
  p.b = operand(k.b, k.b.strides[d - 2], k.b.strides[d - 1], depth, m);
  if (!p.a.along && p.b.along) return false;
  p.bias = k.bias.as<float>(), p.sums = k.sums.as<float>();
  p.c = k.c.as<float>(), p.pre = k.pre.row<float>(0), p.pre_stride = k.pre.row_stride;
  p.depth = static_cast<int>(depth);
  p.epilogue = k.epilogue;
  p.whole = is_whole(p.a, p.depth) && is_whole(p.b, p.depth);
  p.wide_out = m % 4 == 0 && is_wide(p.c, m) && (!p.pre || is_wide(p.pre, p.pre_stride)) &&
               (!p.bias || is_wide(p.bias, 0));
  // One wave of blocks, as wide a share of the terms as that leaves.
  const auto blocks = [&](int64_t rows, int64_t cols) {
    return ceil_div(n, rows * kTile) * ceil_div(m, cols * kTile);
  };
  p.row_tiles = blocks(1, 1) <= kBlocksAtOnce ? 1 : 2;
  p.col_tiles = blocks(p.row_tiles, 1) <= kBlocksAtOnce ? 1 : 2;
  p.col_blocks = static_cast<int>(ceil_div(m, int64_t{p.col_tiles} * kTile));
  p.blocks = static_cast<int>(blocks(p.row_tiles, p.col_tiles));
  return true;
}

}  // namespace

bool multiply_small(Cuda on, std::span<const MatmulArgs> products) {
  if (!is_tf32_allowed() || products.empty() || products.size() > 2) return false;
  SmallProducts k{};
  int blocks = 0;
  for (size_t i = 0; i < products.size(); ++i) {
    if (!describe(products[i], k.products[i])) return false;
    blocks += k.products[i].blocks;
  }
  launch(on,
         {.grid = dim3(static_cast<unsigned>(blocks)),
          .block = dim3(kThreads),
          .shared = sizeof(Parts),
          .overlap = true},
         matmul_small_kernel, k);
  return true;
}

}  // namespace norma
