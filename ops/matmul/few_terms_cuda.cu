#include <algorithm>

#include "norma/core/cuda/async_copy.cuh"
#include "norma/core/cuda/launch.cuh"
#include "norma/core/cuda/mma.cuh"
#include "norma/core/cuda/runtime.h"
#include "norma/core/cuda/words.cuh"
#include "norma/ops/matmul/few_terms.h"

namespace norma {
namespace {

// c, which is read and written, is nearly all that moves, and cuBLASLt's tiles, made for long sums,
// begin and end more than they stream. A warp keeps its 32 columns of b in registers and walks down
// c's rows; what it reads of c is asked for a tile ahead, and a's rows come through shared memory,
// three tiles in turn.
//   16384 × 1536, sums of 80: 47 µs, cuBLASLt 54, a copy 35 (H100)
//   bytes  c twice, a (from the second cache again for each 256 columns)
constexpr int kWarps = 8, kThreads = kWarps * kWarpSize;
constexpr int kWarpColumns = 32, kColumns = kWarps * kWarpColumns;
constexpr int kRows = 32, kTiles = 3, kBlocks = 2;
constexpr int kPad = 8;  // elements: rows of an odd number of 16 bytes meet in no bank

struct FewTermsArgs {
  const void *a, *b;
  void* c;
  int64_t rows, a_stride, b_stride, c_stride;
  int64_t columns;
};

/// Of a warp's columns those that lane quarter q holds lie side by side, 8 q … 8 q + 7, two from
/// each of its four products: column 8 q + 2 j + e is number 2 q + e of product j.
__device__ __forceinline__ int place_of(int column) {
  return (column & ~31) | (column & 6) << 2 | (column & 24) >> 2 | (column & 1);
}

template <class T, int kTerms>
struct FewTermsShared {
  union {
    T a[kTiles][kRows][kTerms + kPad];
    T b[kTerms][kColumns + kPad];
  };
};

/// The block's columns of b, into shared memory in their places.
template <class T, int kTerms>
__device__ __forceinline__ void stage(FewTermsShared<T, kTerms>& m, const FewTermsArgs& k,
                                      int first) {
  constexpr int kRuns = kColumns / 8;
  for (int i = threadIdx.x; i < kTerms * kRuns; i += kThreads) {
    const int row = i / kRuns, column = i % kRuns * 8;
    const auto words =
        Words<T, 8>::load(static_cast<const T*>(k.b) + row * k.b_stride + first + column);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      *reinterpret_cast<uint32_t*>(&m.b[row][place_of(column + 2 * j)]) = words.w[j];
  }
}

template <class T, int kTerms>
__global__ void __launch_bounds__(kThreads, kBlocks) matmul_few_terms_kernel(FewTermsArgs k) {
  constexpr int kParts = kTerms / 16, kProducts = kWarpColumns / 8, kSteps = kRows / 16;
  using Row = Words<T, 8>;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& m = *reinterpret_cast<FewTermsShared<T, kTerms>*>(memory);
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int first = int(blockIdx.y) * kColumns, column = first + warp * kWarpColumns + lane % 4 * 8;
  const int64_t tiles = ceil_div(k.rows, int64_t{kRows});
  /// This lane's rows of a tile are lane / 4 and every eighth after it.
  const auto at = [&](int64_t tile, int eighth) { return tile * kRows + eighth * 8 + lane / 4; };
  Row old[kSteps * 2];
  const auto fetch = [&](int64_t tile) {
#pragma unroll
    for (int r = 0; r < kSteps * 2; ++r)
      old[r] = at(tile, r) < k.rows
                   ? Row::load(static_cast<const T*>(k.c) + at(tile, r) * k.c_stride + column)
                   : Row::zero();
  };
  const auto ask = [&](int64_t tile, int turn) {
    constexpr int kRuns = kTerms / 8;
    const T* a = static_cast<const T*>(k.a);
    if (tile < tiles)
      for (int i = threadIdx.x; i < kRows * kRuns; i += kThreads) {
        const int64_t row = min(tile * kRows + i / kRuns, k.rows - 1);
        copy_16(&m.a[turn][i / kRuns][i % kRuns * 8], a + row * k.a_stride + i % kRuns * 8);
      }
    commit_copies();
  };

  wait_for_previous_kernel();
  fetch(blockIdx.x);
  stage(m, k, first);
  __syncthreads();
  uint32_t b[kParts][kProducts / 2][4];  // of two products: lower and upper half of the terms
#pragma unroll
  for (int p = 0; p < kParts; ++p)
#pragma unroll
    for (int j = 0; j < kProducts / 2; ++j)
      load_matrices_transposed(
          b[p][j],
          &m.b[p * 16 + lane / 8 % 2 * 8 + lane % 8][warp * kWarpColumns + j * 16 + lane / 16 * 8]);
  __syncthreads();  // b makes room for a's tiles
  int64_t tile = blockIdx.x;
  ask(tile, 0);
  ask(tile + gridDim.x, 1);
  for (int turn = 0; tile < tiles; tile += gridDim.x, turn = (turn + 1) % kTiles) {
    wait_for_copies<1>();
    __syncthreads();  // a's tile is there, and that of the turn before is free
    ask(tile + 2 * int64_t{gridDim.x}, (turn + 2) % kTiles);
    float c[kSteps][kProducts][4];
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
#pragma unroll
      for (int j = 0; j < kProducts; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) c[s][j][e] = convert<float>(old[2 * s + e / 2][2 * j + e % 2]);
    fetch(tile + gridDim.x);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        uint32_t a[4];
        load_matrices(a, &m.a[turn][s * 16 + lane % 16][p * 16 + lane / 16 * 8]);
#pragma unroll
        for (int j = 0; j < kProducts; ++j) {
          float(&sum)[4] = c[s][j];
          mma<T>(sum[0], sum[1], sum[2], sum[3], a, b[p][j / 2][j % 2 * 2],
                 b[p][j / 2][j % 2 * 2 + 1]);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = at(tile, 2 * s + half);
        Row words;
#pragma unroll
        for (int j = 0; j < kProducts; ++j)
          words.w[j] = pack_pair<T>(c[s][j][2 * half], c[s][j][2 * half + 1]);
        if (row < k.rows) words.store_global(static_cast<T*>(k.c) + row * k.c_stride + column);
      }
    }
  }
}

template <class T, int kTerms>
void start(Cuda on, const FewTermsArgs& k) {
  const int64_t across = k.columns / kColumns;
  const int64_t places = int64_t{kBlocks} * detail::cuda_multiprocessors(on.device);
  const int64_t down = std::clamp<int64_t>(places / across, 1, ceil_div(k.rows, int64_t{kRows}));
  launch(on,
         {.grid = dim3(static_cast<unsigned>(down), static_cast<unsigned>(across)),
          .block = dim3(kThreads),
          .shared = sizeof(FewTermsShared<T, kTerms>),
          .overlap = true},
         matmul_few_terms_kernel<T, kTerms>, k);
}

/// Whether all rows are whole runs of 16 bytes.
template <class AnyView>
bool in_whole_runs(const AnyView& x) {
  return x.strides[1] == 1 && x.strides[0] % 8 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

}  // namespace

bool add_few_terms(Cuda on, const MatmulArgs& k) {
  constexpr int64_t kFewestRows = 2048;
  if (!k.accumulate || size_of(k.a.dtype) != 2 || k.c.dtype != k.a.dtype || k.bias || k.sums ||
      k.epilogue != MatmulEpilogue::plain || k.a.shape.dim() != 2 || k.b.shape.dim() != 2 ||
      k.c.shape.dim() != 2)
    return false;
  const FewTermsArgs args{.a = k.a.data,
                          .b = k.b.data,
                          .c = k.c.data,
                          .rows = k.c.shape[0],
                          .a_stride = k.a.strides[0],
                          .b_stride = k.b.strides[0],
                          .c_stride = k.c.strides[0],
                          .columns = k.c.shape[1]};
  if (args.rows < kFewestRows || args.columns % kColumns != 0 || !in_whole_runs(k.a) ||
      !in_whole_runs(k.b) || !in_whole_runs(k.c))
    return false;
  const auto with = [&]<class T>() {
    switch (k.a.shape[1]) {
      case 64:
        return start<T, 64>(on, args), true;
      case 80:
        return start<T, 80>(on, args), true;
      case 96:
        return start<T, 96>(on, args), true;
      default:
        return false;
    }
  };
  return k.a.dtype == bfloat16 ? with.template operator()<BFloat16>()
                               : with.template operator()<Float16>();
}

}  // namespace norma
