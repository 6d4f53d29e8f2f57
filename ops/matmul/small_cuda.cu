#include <algorithm>
#include <array>
#include <bit>

#include "norma/core/cuda/async_copy.cuh"
#include "norma/core/cuda/early.h"
#include "norma/core/cuda/reduce.cuh"
#include "norma/core/error.h"
#include "norma/core/tensor.h"
#include "norma/ops/matmul/fast_gelu.cuh"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/matmul/small.cuh"
#include "norma/ops/matmul/small.h"
#include "norma/ops/matmul/small_plan.h"

namespace norma {
namespace {

// Small products in tf32. A launch costs more than the arithmetic, and a warp that is nearly alone
// on its multiprocessor takes 5 cycles an instruction: so few instructions, no tiles in shared
// memory. A warp makes 32 × 32 elements straight from memory, 16 terms at a time, and the warps of
// a block share the sum's terms; their parts meet in shared memory in one order. What weights get
// runs beside what a sweep waits for, two products a launch, by few blocks (small_plan.h). Sharing
// a sum among the blocks of a cluster as well was slower, 0.44 for 0.40 ms a toy step: two meetings
// of a cluster take longer than reading its terms.

using namespace small;

// Larger ones are cuBLASLt's, whose tiles read less.
constexpr int64_t kMostTerms = int64_t{1} << 26, kMostDepth = 4096;

struct SmallProduct {
  Operand a, b;
  const float* bias;
  float *c, *pre, *sums;
  int64_t pre_stride;
  int depth;
  MatmulEpilogue epilogue;
  bool whole, wide_out;  ///< whole: nothing but aligned pieces of 4, and of 16 terms
  bool early = false;    ///< b is there before the kernel in front has ended
  bool early_addends = false;
  /// Powers of two, since a division takes a tenth of a block's time: of a block's tiles down and
  /// across, and of the warps that share a tile.
  int row_bits, col_bits, slice_bits;
  int col_blocks, blocks;

  __host__ __device__ int row_tiles() const { return 1 << row_bits; }
  __host__ __device__ int col_tiles() const { return 1 << col_bits; }
  __device__ int slices() const { return 1 << slice_bits; }
  __host__ __device__ int quads() const { return kQuads << (row_bits + col_bits); }
  __device__ int row_of_tile(int tile) const { return (tile & (row_tiles() - 1)) * kTile; }
  __device__ int col_of_tile(int tile) const { return (tile >> row_bits) * kTile; }
  /// What is added to a sum, or what its gradient goes through.
  __host__ __device__ bool has_addend() const {
    return bias || epilogue == MatmulEpilogue::gelu_backward;
  }
};
struct SmallProducts {
  SmallProduct products[2];
};

using Parts = TilePart[kWarps];

/// This warp's part of the tile at (row, col), to shared memory. Places are worked out while the
/// kernel before still runs; `begin` is called when it has ended.
template <bool kAlongA, bool kAlongB, bool kWhole, class F>
__device__ __forceinline__ void make_part(const SmallProduct& p, int row, int col, int slice,
                                          bool with_sums, Parts& parts, float (&part_sums)[kTile],
                                          const F& begin) {
  const Loader<kAlongA, kWhole> load_a(p.a, row, p.depth);
  const Loader<kAlongB, kWhole> load_b(p.b, col, p.depth);
  Part part;
  add_terms(part, load_a, load_b, slice * kDepth, p.slices() * kDepth, p.depth, with_sums, p.early,
            [&] {
              wait_for_previous_kernel();
              begin();
            });
  store_part<kAlongA, kAlongB>(part, parts[threadIdx.x / kWarpSize]);
  if (!with_sums) return;
  const int g = threadIdx.x % kWarpSize / 4, q = threadIdx.x % 4;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const float sum = warp_sum<4>(part.sums[r]);
    if (q == 0) part_sums[Piece<kAlongA>::row_of(r, g)] = sum;
  }
}

/// Where a block's quad lies in the product.
struct Quad {
  int tile, tile_row, tile_col, row, col;
  __device__ Quad(const SmallProduct& p, int first_row, int first_col, int i)
      : tile(i / kQuads),
        tile_row(i % kQuads / (kTile / 4)),
        tile_col(i % (kTile / 4) * 4),
        row(first_row + p.row_of_tile(tile) + tile_row),
        col(first_col + p.col_of_tile(tile) + tile_col) {}
  __device__ bool inside(const SmallProduct& p) const { return row < p.a.count && col < p.b.count; }
  __device__ const float* addend(const SmallProduct& p) const {
    return p.bias ? p.bias + col : p.pre + row * p.pre_stride + col;
  }
};

/// Elements of c from their sums and what is added to them.
__device__ __forceinline__ void finish(const SmallProduct& p, const Quad& at, Four v,
                                       const Four& addend) {
  const int n = min(4, p.b.count - at.col);
  const auto put = [&](float* to) { p.wide_out ? store(to, v) : store_some<4>(to, v, n); };
  if (p.epilogue == MatmulEpilogue::gelu_backward) {
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] *= FastGelu(addend[e]).slope();
  } else if (p.bias) {
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] += addend[e];
  }
  if (p.epilogue == MatmulEpilogue::gelu) {
    put(p.pre + at.row * p.pre_stride + at.col);
#pragma unroll
    for (float& e : v) e = FastGelu(e).value();
  }
  put(p.c + int64_t{at.row} * p.b.count + at.col);
}

/// A block's shared memory; kept small, since the cache in which loads wait has the rest.
struct Shared {
  Parts parts;
  float part_sums[kWarps][kTile];
  Four addends[1];  ///< as many as a block's quads, where there are any
};
size_t bytes_of(const SmallProduct& p) {
  return sizeof(Shared) + sizeof(Four) * static_cast<size_t>(p.has_addend() ? p.quads() : 0);
}

class Block {
 public:
  __device__ Block(const SmallProduct& p, Shared& shared, int block)
      : p_(p),
        shared_(shared),
        first_row_(block / p.col_blocks * p.row_tiles() * kTile),
        first_col_(block % p.col_blocks * p.col_tiles() * kTile),
        with_sums_(p.sums && first_col_ == 0) {}

  __device__ __forceinline__ void multiply() {
    const int warp = threadIdx.x / kWarpSize, tile = warp >> p_.slice_bits;
    const int slice = warp & (p_.slices() - 1);
    const int row = first_row_ + p_.row_of_tile(tile), col = first_col_ + p_.col_of_tile(tile);
    if (p_.early_addends) fetch_addends();
    const auto begin = [&] {
      if (!p_.early_addends) fetch_addends();
    };
    const auto go = [&]<bool kAlongA, bool kAlongB>() {
      auto& sums = shared_.part_sums[warp];
      if (p_.whole)
        make_part<kAlongA, kAlongB, true>(p_, row, col, slice, with_sums_, shared_.parts, sums,
                                          begin);
      else
        make_part<kAlongA, kAlongB, false>(p_, row, col, slice, with_sums_, shared_.parts, sums,
                                           begin);
    };
    if (p_.b.along)
      go.template operator()<true, true>();
    else if (p_.a.along)
      go.template operator()<true, false>();
    else
      go.template operator()<false, false>();
  }

  /// The sums of all warps' terms.
  __device__ __forceinline__ void join_warps() {
    const int slices = p_.slices();
    for (int i = threadIdx.x; i < p_.quads(); i += kThreads) {
      const Quad at(p_, first_row_, first_col_, i);
      const Four sum =
          join_parts(&shared_.parts[at.tile * slices], slices, at.tile_row, at.tile_col);
      if (at.inside(p_)) finish(p_, at, sum, shared_.addends[i]);
    }
    const int row = first_row_ + static_cast<int>(threadIdx.x);
    if (!with_sums_ || threadIdx.x >= p_.row_tiles() * kTile || row >= p_.a.count) return;
    float sum = 0;
#pragma unroll 4
    for (int s = 0; s < slices; ++s)
      sum += shared_.part_sums[threadIdx.x / kTile * slices + s][threadIdx.x % kTile];
    p_.sums[row] = sum;
  }

 private:
  /// What the end wants from memory comes while the product is made, each thread's own.
  __device__ __forceinline__ void fetch_addends() {
    if (!p_.has_addend()) return;
    for (int i = threadIdx.x; i < p_.quads(); i += kThreads) {
      const Quad at(p_, first_row_, first_col_, i);
      if (!at.inside(p_)) continue;
      if (p_.wide_out)
        copy_16(&shared_.addends[i], at.addend(p_));
      else
        shared_.addends[i] = load_some<4>(at.addend(p_), p_.b.count - at.col, 0.f);
    }
  }

  const SmallProduct& p_;
  Shared& shared_;
  int first_row_, first_col_;
  bool with_sums_;
};

__global__ void __launch_bounds__(kThreads, 1)
    matmul_small_kernel(const __grid_constant__ SmallProducts k) {
  extern __shared__ __align__(16) unsigned char memory[];
  const int first_blocks = k.products[0].blocks;
  const bool second = static_cast<int>(blockIdx.x) >= first_blocks;
  Block block(k.products[second], *reinterpret_cast<Shared*>(memory),
              static_cast<int>(blockIdx.x) - (second ? first_blocks : 0));
  block.multiply();
  wait_for_all_copies();
  __syncthreads();
  block.join_warps();
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
  return true;
}

void share_out(SmallProduct& p, const SmallSize& size, const SmallShare& share) {
  const auto bits_of = [](int count) { return std::countr_zero(static_cast<unsigned>(count)); };
  p.row_bits = bits_of(share.row_tiles), p.col_bits = bits_of(share.col_tiles);
  p.slice_bits = bits_of(kWarps) - p.row_bits - p.col_bits;
  p.col_blocks = static_cast<int>(share.col_blocks(size));
  p.blocks = static_cast<int>(share.blocks(size));
}

/// Runs them by plan_small's shares of so many blocks; false where one is not for this kernel.
bool multiply(Cuda on, std::span<const MatmulArgs> products, int64_t blocks_at_once, bool overlap) {
  if (!is_tf32_allowed()) return false;
  SmallProducts k{};
  std::array<SmallSize, 2> sizes{};
  for (size_t i = 0; i < products.size(); ++i) {
    SmallProduct& p = k.products[i];
    if (!describe(products[i], p)) return false;
    sizes[i] = {p.a.count, p.b.count, p.depth};
  }
  const auto shares = plan_small(std::span(sizes.data(), products.size()), blocks_at_once);
  int blocks = 0;
  size_t bytes = 0;
  for (size_t i = 0; i < products.size(); ++i) {
    share_out(k.products[i], sizes[i], shares[i]);
    blocks += k.products[i].blocks;
    bytes = std::max(bytes, bytes_of(k.products[i]));
  }
  const MatmulArgs& first = products[0];
  if (overlap && (first.weight || first.saved) && detail::may_read_early(on))
    k.products[0].early = first.weight, k.products[0].early_addends = first.saved;
  launch(on,
         {.grid = dim3(static_cast<unsigned>(blocks)),
          .block = dim3(kThreads),
          .shared = bytes,
          .overlap = overlap},
         matmul_small_kernel, k);
  return true;
}

}  // namespace

bool suits_small(const MatmulArgs& product) {
  SmallProduct unused{};
  return is_tf32_allowed() && describe(product, unused);
}
bool multiply_small(Cuda on, const MatmulArgs& product) {
  return multiply(on, {&product, 1}, kSmallBlocks, true);
}
void multiply_small_aside(Cuda on, std::span<const MatmulArgs> products) {
  if (!multiply(on, products, kSmallBlocksAside, false))
    throw CudaError("matmul: products that go beside others must be small ones of tf32");
}

}  // namespace norma
