#include <algorithm>

#include "norma/core/cuda/launch.cuh"
#include "norma/core/cuda/packed.cuh"
#include "norma/core/cuda/runtime.h"
#include "norma/core/cuda/stages.cuh"
#include "norma/core/cuda/tensor_map.h"
#include "norma/core/cuda/wgmma.cuh"
#include "norma/ops/matmul/fast_gelu.cuh"
#include "norma/ops/matmul/gelu_hopper.h"

namespace norma {
namespace {

// With sums this short (a model of 384 features has 384 terms) a product is no longer than what
// comes after it: GELU of each element, or its slope, and twice the elements to memory or from it.
// cuBLASLt does one after the other: 89 µs for 16384 × 384 by 384 × 1536 with GELU's gradient,
// where the product alone takes 23. Here a block keeps its 128 rows of the left factor in shared
// memory and walks along the columns; of its three computing warpgroups one multiplies, half a
// tile's rows, while the others have their elements to finish (48 and 55 µs forward and backward;
// with two warpgroups, a half each, 51 and 55).
//   bytes  2 rows (k + 2 m): the right factor comes from the second cache

constexpr int kPanel = 64, kMostPanels = 6;  // columns of a panel of shared memory
constexpr int kCols = 128, kStages = 7;
constexpr int kGroups = 3, kThreads = (kGroups + 1) * kGroup;
constexpr int kLoaderRegisters = 24, kComputeRegisters = 160;
[[maybe_unused]] constexpr int kTurn = 1;  // the first of the barriers by which they take turns

template <class T>
struct GeluShared {
  T left[kMostPanels][kTileRows * kPanel];
  T right[kStages][kPanel * kCols];
  SharedBarrier left_full[kMostPanels];
  Barriers<kStages> of_right;
};

template <class T>
struct GeluProblem {
  const T* bias;
  T *c, *pre;
  int64_t pre_stride;
  int rows, cols, panels, tiles;  ///< tiles: of kCols columns, of a block

  __device__ int first_row() const { return static_cast<int>(blockIdx.x) * kTileRows; }
  __device__ int first_col(int tile) const {
    return (static_cast<int>(blockIdx.y) * tiles + tile) * kCols;
  }
  __device__ int my_tiles() const { return min(tiles, (cols - first_col(0) + kCols - 1) / kCols); }
};
struct GeluMaps {
  CUtensorMap left, right;
};

/// kAcross: the right factor's rows lie along its columns, not along the sum.
template <class T, bool kAcross>
__device__ void load_factors(GeluShared<T>& m, const GeluMaps& maps, const GeluProblem<T>& k) {
  Ring<kStages> at;
  for (int tile = 0; tile < k.my_tiles(); ++tile)
    for (int p = 0; p < k.panels; ++p, at.next()) {
      if (tile == 0) {
        m.left_full[p].expect(sizeof m.left[p]);
        copy_box(m.left[p], maps.left, m.left_full[p], p * kPanel, k.first_row(), 0, 0);
      }
      SharedBarrier& done = m.of_right.acquire(at);
      T* to = m.right[at.stage];
      const int col = k.first_col(tile), term = p * kPanel;
      done.expect(sizeof m.right[0]);
      if constexpr (kAcross) {
        copy_box(to, maps.right, done, col, term, 0, 0);
        copy_box(to + kPanel * kPanel, maps.right, done, col + kPanel, term, 0, 0);
      } else {
        copy_box(to, maps.right, done, term, col, 0, 0);
      }
    }
}

/// Half a tile: 64 rows. A thread holds two of them, of each 8 columns two (mma.cuh).
struct Unit {
  static constexpr int kOfTile = 2;
  int tile, first_row;
  __device__ explicit Unit(int n) : tile(n / kOfTile), first_row(n % kOfTile * 64) {}
  __device__ int row() const {
    return first_row + threadIdx.x % kGroup / kWarpSize * 16 + threadIdx.x % kWarpSize / 4;
  }
  /// The first of 8 columns of 32 that a lane moves to or from memory.
  __device__ static int col() { return threadIdx.x % 4 * 8; }
};

/// `issued` is called when nothing is left but to wait for the products.
template <class T, bool kAcross, class F>
__device__ __forceinline__ void multiply_unit(float (&c)[kCols / 2], GeluShared<T>& m,
                                              const Unit& unit, int panels, const F& issued) {
  Ring<kStages> at;
  at.stage = unit.tile * panels % kStages, at.parity = unit.tile * panels / kStages & 1;
  Ring<kStages> last = at;
#pragma unroll 1
  for (int p = 0; p < panels; ++p, at.next()) {
    m.left_full[p].wait(0);
    m.of_right.wait(at);
    const T *left = m.left[p], *right = m.right[at.stage];
    wgmma_begin();
#pragma unroll
    for (int term = 0; term < kPanel; term += 16) {
      const uint64_t a = rows_of(left, kTileRows, unit.first_row, term);
      if constexpr (kAcross)
        wgmma_rows<T, kCols, true>(c, a, columns_of(right, kPanel, term), p + term > 0);
      else
        wgmma_rows<T, kCols>(c, a, rows_of(right, kCols, 0, term), p + term > 0);
    }
    wgmma_commit();
    if (p == 0) continue;
    wgmma_wait<1>();
    m.of_right.release(last), last.next();
  }
  issued();
  wgmma_wait<0>();
  keep_registers(c);
  m.of_right.release(last);
}

/// 32 columns of a row's part, 16 bytes a lane in memory and two of each 8 columns in registers.
struct Words {
  uint32_t w[4];
  template <class T>
  __device__ void load(const T* from, bool inside) {
    const uint4 v = inside ? *reinterpret_cast<const uint4*>(from) : uint4{};
    w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
  }
  template <class T>
  __device__ void store(T* to, bool inside) {
    transpose_quad(w);
    if (inside) *reinterpret_cast<uint4*>(to) = make_uint4(w[0], w[1], w[2], w[3]);
  }
};

/// c ⊙ gelu′(pre), or pre = c + bias and gelu(pre); `near` is what of pre, or of the bias, came
/// before the product.
template <class T, bool kBackward>
struct Finish {
  static constexpr int kParts = kCols / 32;
  Words pre[kBackward ? 2 : 1][kParts];

  __device__ __forceinline__ void fetch(const GeluProblem<T>& k, int row, int col) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const bool has_col = col + 32 * part < k.cols;
      if constexpr (kBackward) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          pre[i][part].load(k.pre + (row + 8 * i) * k.pre_stride + col + 32 * part,
                            has_col && row + 8 * i < k.rows);
      } else {
        pre[0][part].load(k.bias + col + 32 * part, has_col && k.bias);
      }
    }
  }
  __device__ __forceinline__ void store(const GeluProblem<T>& k, const float (&c)[kCols / 2],
                                        int row, int col) {
    if constexpr (!kBackward)
#pragma unroll
      for (Words& w : pre[0]) transpose_quad(w.w);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int64_t at = row + 8 * i;
        const int first = col + 32 * part;
        const bool inside = at < k.rows && first < k.cols;
        Words& near = pre[kBackward ? i : 0][part];
        if constexpr (kBackward) transpose_quad(near.w);
        Words out, u;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 v = unpack_pair<T>(near.w[j]);
          const float a = c[16 * part + 4 * j + 2 * i], b = c[16 * part + 4 * j + 2 * i + 1];
          if constexpr (kBackward) {
            out.w[j] = pack_pair<T>(a * FastGelu(v.x).slope(), b * FastGelu(v.y).slope());
          } else {
            u.w[j] = pack_pair<T>(a + v.x, b + v.y);
            out.w[j] = pack_pair<T>(FastGelu(a + v.x).value(), FastGelu(b + v.y).value());
          }
        }
        if constexpr (!kBackward) u.store(k.pre + at * k.pre_stride + first, inside);
        out.store(k.c + at * k.cols + first, inside);
      }
  }
};

template <class T, bool kBackward>
__device__ void compute(GeluShared<T>& m, const GeluProblem<T>& k) {
  const int group = group_of_block() - 1, units = Unit::kOfTile * k.my_tiles();
  const int mine = kTurn + group, next = kTurn + (group + 1) % kGroups;
  if (group == kGroups - 1) named_arrive(next, 2 * kGroup);
  float c[kCols / 2];
#pragma unroll 1
  for (int n = group; n < units; n += kGroups) {
    const Unit unit(n);
    const int row = k.first_row() + unit.row(), col = k.first_col(unit.tile) + Unit::col();
    Finish<T, kBackward> finish;
    finish.fetch(k, row, col);  // on its way while others multiply
    named_sync(mine, 2 * kGroup);
    multiply_unit<T, kBackward>(c, m, unit, k.panels, [&] {
      if (n + 1 < units) named_arrive(next, 2 * kGroup);
    });
    finish.store(k, c, row, col);
  }
}

template <class T, bool kBackward>
__global__ void __launch_bounds__(kThreads, 1)
    matmul_gelu_hopper_kernel(const __grid_constant__ GeluMaps maps,
                              const __grid_constant__ GeluProblem<T> k) {
  if constexpr (kHasWgmma) {
    auto& m = shared_memory<GeluShared<T>>();
    if (threadIdx.x == 0) {
      for (SharedBarrier& full : m.left_full) full.init(1);
      m.of_right.init(1);
      publish_barriers();
    }
    __syncthreads();
    wait_for_previous_kernel();
    if (threadIdx.x < kGroup) {
      give_registers<kLoaderRegisters>();
      if (threadIdx.x == 0) load_factors<T, kBackward>(m, maps, k);
    } else {
      take_registers<kComputeRegisters>();
      compute<T, kBackward>(m, k);
    }
  } else {
    __trap();
  }
}

bool is_wide(const void* data, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 8 == 0;
}

/// The copy engine's word for a matrix with rows of `cols` dense elements.
CUtensorMap map_of(const ConstView& x, int64_t rows, int64_t cols, int64_t stride, int box_rows) {
  return detail::tensor_map(x.dtype, x.data, {cols, rows, 1, 1}, {1, stride, 64, 64}, box_rows);
}

template <class T, bool kBackward>
void launch_gelu(const Cuda& on, const MatmulArgs& k, int64_t a_stride, int64_t b_stride) {
  const int d = k.c.shape.dim();
  const int64_t rows = k.c.shape[d - 2], cols = k.c.shape[d - 1], depth = k.a.shape[d - 1];
  const GeluMaps maps{map_of(k.a, rows, depth, a_stride, kTileRows),
                      kBackward ? map_of(k.b, depth, cols, b_stride, kPanel)
                                : map_of(k.b, cols, depth, b_stride, kCols)};
  // Few rows: their columns are shared by blocks, which read the rows again.
  const int64_t row_blocks = ceil_div(rows, int64_t{kTileRows}),
                tiles = ceil_div(cols, int64_t{kCols});
  const int64_t at_once = detail::properties().multiProcessorCount;
  const int64_t shares = std::clamp<int64_t>(at_once / row_blocks, 1, tiles);
  const int64_t tiles_each = ceil_div(tiles, shares);
  const GeluProblem<T> problem{.bias = k.bias.as<T>(),
                               .c = k.c.as<T>(),
                               .pre = k.pre.row<T>(0),
                               .pre_stride = k.pre.row_stride,
                               .rows = static_cast<int>(rows),
                               .cols = static_cast<int>(cols),
                               .panels = static_cast<int>(ceil_div(depth, int64_t{kPanel})),
                               .tiles = static_cast<int>(tiles_each)};
  launch(on,
         {.grid = dim3(static_cast<unsigned>(row_blocks),
                       static_cast<unsigned>(ceil_div(tiles, tiles_each))),
          .block = dim3(kThreads),
          .shared = kSharedBytes<GeluShared<T>>,
          .overlap = true},
         matmul_gelu_hopper_kernel<T, kBackward>, maps, problem);
}

}  // namespace

bool multiply_gelu(Cuda on, const MatmulArgs& k) {
  if (k.epilogue == MatmulEpilogue::plain || k.sums || size_of(k.a.dtype) != 2 ||
      k.c.dtype != k.a.dtype || !detail::cuda_is_hopper(on.device))
    return false;
  const int d = k.c.shape.dim();
  const int64_t rows = k.c.shape[d - 2], cols = k.c.shape[d - 1], depth = k.a.shape[d - 1];
  constexpr int64_t kFewest = 1024, kMost = int64_t{1} << 30;
  if (k.c.shape.numel() != rows * cols || k.c.strides[d - 2] != cols || rows < kFewest ||
      rows > kMost || cols > kMost || cols % 8 != 0 || depth == 0 || depth > kMostPanels * kPanel)
    return false;
  const bool backward = k.epilogue == MatmulEpilogue::gelu_backward;
  if (backward && k.bias) return false;
  const int64_t a_stride = k.a.strides[d - 2];
  const int64_t b_stride = k.b.strides[backward ? d - 2 : d - 1];
  if (k.a.strides[d - 1] != 1 || k.b.strides[backward ? d - 1 : d - 2] != 1 ||
      !is_wide(k.a.data, a_stride) || !is_wide(k.b.data, b_stride) || !is_wide(k.c.data, cols) ||
      !is_wide(k.pre.data, k.pre.row_stride) || !is_wide(k.bias.data, 0))
    return false;
  const auto run = [&]<class T>() {
    if (backward)
      launch_gelu<T, true>(on, k, a_stride, b_stride);
    else
      launch_gelu<T, false>(on, k, a_stride, b_stride);
  };
  if (k.a.dtype == bfloat16)
    run.template operator()<BFloat16>();
  else
    run.template operator()<Float16>();
  return true;
}

}  // namespace norma
