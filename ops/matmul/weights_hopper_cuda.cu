#include <algorithm>
#include <optional>

#include "norma/core/cuda/cluster.cuh"
#include "norma/core/cuda/launch.cuh"
#include "norma/core/cuda/packed.cuh"
#include "norma/core/cuda/runtime.h"
#include "norma/core/cuda/scratch.h"
#include "norma/core/cuda/stages.cuh"
#include "norma/core/cuda/tensor_map.h"
#include "norma/core/cuda/wgmma.cuh"
#include "norma/ops/matmul/weights_hopper.h"

namespace norma {
namespace {

// Weights' gradients: few elements, each a sum over all rows of a batch. A cluster of two blocks
// has 384 × 256 elements and a share of the sum's terms; each block loads its own 192 columns of
// the left factor and half of the right one's for both. All shares of all tiles run at the same
// pace, so that each row comes from memory about once. Two products that share a launch fill 120 of
// an H100's 132 multiprocessors with five shares each; their parts go by memory and are added up,
// in one order, by a second kernel.
//   384 × 1536 and turned, 16384 terms: 60 + 7 µs, cuBLASLt's two 35 + 6 and 37 + 6
//   bytes  the factors, and shares · (rows · columns) · 4 twice, from the second cache

constexpr int kGroups = 3, kBlocks = 2;  // computing warpgroups; blocks of a cluster
constexpr int kThreads = (kGroups + 1) * kGroup;
constexpr int kLeft = 64 * kGroups, kRight = 256, kPanel = 64, kStages = 4;
constexpr int kRightPanels = kRight / kPanel, kHalf = 128;
constexpr int kLoaderRegisters = 32, kComputeRegisters = 160;
constexpr int kQuads = kRight / 8;  // of four sums, of a thread
constexpr int kPartFloats = kLeft * kRight;

template <class T>
struct WeightsShared {
  T left[kStages][kGroups][kPanel * kPanel];
  T right[kStages][kRightPanels][kPanel * kPanel];
  Barriers<kStages> ready;
};

/// c = leftᵀ right, or its transpose; a sum has `panels` panels of 64 terms.
struct WeightsProduct {
  float* c;
  int left, right;  ///< columns of the factors
  int panels, shares, right_tiles, tiles;
  int first_unit;  ///< a unit is a cluster's work: tile + tiles · share
  bool turned;     ///< c is (right, left)

  __host__ __device__ int units() const { return tiles * shares; }
};
struct WeightsProducts {
  WeightsProduct products[2];
  float* parts;
};
struct WeightsMaps {
  CUtensorMap left[2], right[2];
};

struct Unit {
  int which, share, left_col, right_col, first_panel, panels;
  __device__ Unit(const WeightsProducts& k, int unit, int rank) {
    which = unit >= k.products[1].first_unit;
    const WeightsProduct& p = k.products[which];
    const int i = unit - p.first_unit, tile = i % p.tiles;
    share = i / p.tiles;
    left_col = (tile / p.right_tiles * kBlocks + rank) * kLeft;
    right_col = tile % p.right_tiles * kRight;
    first_panel = p.panels * share / p.shares;
    panels = p.panels * (share + 1) / p.shares - first_panel;
  }
};

template <class T>
__device__ void load_factors(WeightsShared<T>& m, const WeightsMaps& maps, const Unit& u,
                             int rank) {
  Ring<kStages> at;
  const CUtensorMap &left = maps.left[u.which], &right = maps.right[u.which];
  constexpr int kMine = kRightPanels / kBlocks;
  for (int p = 0; p < u.panels; ++p, at.next()) {
    SharedBarrier& full = m.ready.acquire(at);
    const int term = (u.first_panel + p) * kPanel;
    full.expect(sizeof m.left[0] + sizeof m.right[0]);
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
      copy_box(m.left[at.stage][g], left, full, u.left_col + g * kPanel, term, 0, 0);
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int panel = rank * kMine + i;
      copy_box_to((1 << kBlocks) - 1, m.right[at.stage][panel], right, full,
                  u.right_col + panel * kPanel, term);
    }
  }
}

template <class T>
__device__ __forceinline__ void multiply(float (&c)[2][kHalf / 2], WeightsShared<T>& m, int panels,
                                         int group) {
  Ring<kStages> at, last;
  const auto release = [&] {  // to both blocks' loaders, which write here
    if (threadIdx.x % kWarpSize < kBlocks)
      arrive_in(m.ready.empty[last.stage], threadIdx.x % kWarpSize);
    last.next();
  };
#pragma unroll 1
  for (int p = 0; p < panels; ++p, at.next()) {
    m.ready.wait(at);
    wgmma_begin();
#pragma unroll
    for (int term = 0; term < kPanel; term += 16) {
      const uint64_t a = columns_of(m.left[at.stage][group], kPanel, term);
#pragma unroll
      for (int h = 0; h < 2; ++h)
        wgmma_rows<T, kHalf, true, true>(
            c[h], a, columns_of(m.right[at.stage][2 * h], kPanel, term), p + term > 0);
    }
    wgmma_commit();
    if (p == 0) continue;
    wgmma_wait<1>();
    release();
  }
  wgmma_wait<0>();
  keep_registers(c[0]);
  keep_registers(c[1]);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    matmul_weights_hopper_kernel(const __grid_constant__ WeightsMaps maps,
                                 const __grid_constant__ WeightsProducts k) {
  if constexpr (kHasWgmma) {
    auto& m = shared_memory<WeightsShared<T>>();
    const int rank = static_cast<int>(cluster_rank());
    const Unit u(k, static_cast<int>(blockIdx.x) / kBlocks, rank);
    if (threadIdx.x == 0) {
      m.ready.init(1, kBlocks * kGroups * 4);
      publish_barriers();
    }
    cluster_arrive_relaxed();
    cluster_wait();
    wait_for_previous_kernel();
    const int group = group_of_block() - 1;
    if (group < 0) {
      give_registers<kLoaderRegisters>();
      if (threadIdx.x == 0) load_factors(m, maps, u, rank);
    } else {
      take_registers<kComputeRegisters>();
      float c[2][kHalf / 2];
      multiply(c, m, u.panels, group);
      float* part = k.parts + int64_t{blockIdx.x} * kPartFloats +
                    (static_cast<int>(threadIdx.x) - kGroup) * 4;
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const float* v = c[q / (kQuads / 2)] + q % (kQuads / 2) * 4;
        store(part + q * (kGroups * kGroup * 4), Packed<float, 4>{v[0], v[1], v[2], v[3]});
      }
    }
    __syncwarp();
    cluster_arrive_relaxed();  // until here the other's copies and arrivals come
    cluster_wait();
  } else {
    __trap();
  }
}

/// Adds up the shares of a sum, each thread those of four, as a thread above has them: two columns
/// of two rows.
constexpr int kFoldThreads = 256, kFoldBlocks = kPartFloats / 4 / kFoldThreads;  // of a tile
__global__ void __launch_bounds__(kFoldThreads)
    matmul_weights_fold_kernel(const __grid_constant__ WeightsProducts k) {
  const int tile_rank = static_cast<int>(blockIdx.x) / kFoldBlocks;
  const int first = k.products[0].tiles * kBlocks;
  const WeightsProduct& p = k.products[tile_rank >= first];
  const int i = tile_rank - (tile_rank >= first ? first : 0), tile = i / kBlocks,
            rank = i % kBlocks;
  const int quad =
      (static_cast<int>(blockIdx.x) % kFoldBlocks) * kFoldThreads + static_cast<int>(threadIdx.x);
  wait_for_previous_kernel();
  const float* from =
      k.parts + int64_t{(p.first_unit + tile) * kBlocks + rank} * kPartFloats + quad * 4;
  const int64_t step = int64_t{p.tiles} * kBlocks * kPartFloats;
  Packed<float, 4> sum = load<4>(from);
#pragma unroll 4
  for (int s = 1; s < p.shares; ++s) {
    const auto v = load<4>(from + s * step);
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[e] += v[e];
  }
  const int thread = quad % (kGroups * kGroup), q = quad / (kGroups * kGroup);
  const int lane = thread % kWarpSize;
  const int row =
      (tile / p.right_tiles * kBlocks + rank) * kLeft + thread / kWarpSize * 16 + lane / 4;
  const int col = tile % p.right_tiles * kRight + 8 * q + lane % 4 * 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t at = row + 8 * r;
    if (at >= p.left || col >= p.right) continue;
    if (p.turned)
      p.c[col * int64_t{p.left} + at] = sum[2 * r],
                                  p.c[(col + 1) * int64_t{p.left} + at] = sum[2 * r + 1];
    else
      store(p.c + at * p.right + col, Packed<float, 2>{sum[2 * r], sum[2 * r + 1]});
  }
}

bool is_wide(const void* data, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 8 == 0;
}

/// The columns that whole tiles have.
int64_t padded(int64_t left, int64_t right) {
  return ceil_div(left, int64_t{kBlocks * kLeft}) * kBlocks * kLeft *
         ceil_div(right, int64_t{kRight}) * kRight;
}

/// False where it is not for this kernel.
bool describe(const MatmulArgs& k, WeightsProduct& p) {
  const int d = k.c.shape.dim();
  const int64_t n = k.c.shape[d - 2], m = k.c.shape[d - 1], terms = k.a.shape[d - 1];
  constexpr int64_t kMost = 1 << 14, kFewestTerms = 4096, kMostTerms = 1 << 30;
  if (k.epilogue != MatmulEpilogue::plain || k.bias || k.sums || size_of(k.a.dtype) != 2 ||
      k.c.dtype != float32 || k.c.shape.numel() != n * m || k.c.strides[d - 2] != m)
    return false;
  if (n % 8 != 0 || m % 8 != 0 || n > kMost || m > kMost || terms < kFewestTerms ||
      terms > kMostTerms)
    return false;
  const int64_t a_stride = k.a.strides[d - 1], b_stride = k.b.strides[d - 2];
  if (k.a.strides[d - 2] != 1 || k.b.strides[d - 1] != 1 || !is_wide(k.a.data, a_stride) ||
      !is_wide(k.b.data, b_stride) || !is_wide(k.c.data, m))
    return false;
  p.turned = padded(m, n) < padded(n, m);
  const int64_t wide = p.turned ? padded(m, n) : padded(n, m);
  if (wide * 4 > n * m * 5) return false;  // a fifth of the tiles would be empty
  p.c = k.c.as<float>();
  p.left = static_cast<int>(p.turned ? m : n), p.right = static_cast<int>(p.turned ? n : m);
  p.right_tiles = ceil_div(p.right, kRight);
  p.tiles = ceil_div(p.left, kBlocks * kLeft) * p.right_tiles;
  p.panels = static_cast<int>(ceil_div(terms, int64_t{kPanel}));
  return true;
}

/// What a launch is told of the products, but for where they put their parts; none where they are
/// not for this kernel.
std::optional<WeightsProducts> plan(std::span<const MatmulArgs> products) {
  if (products.empty() || products.size() > 2 || !detail::cuda_is_hopper(cuda)) return {};
  WeightsProducts k{};
  int tiles = 0;
  for (size_t i = 0; i < products.size(); ++i) {
    if (products[i].a.dtype != products[0].a.dtype || !describe(products[i], k.products[i]))
      return {};
    tiles += k.products[i].tiles;
  }
  const int at_once = detail::properties().multiProcessorCount / kBlocks, shares = at_once / tiles;
  // Tiles that fill a GPU by themselves, or leave much of it idle, are cuBLASLt's.
  if (shares < 2 || shares * tiles * 5 < at_once * 4) return {};
  int units = 0;
  for (WeightsProduct& p : k.products) {
    p.shares = p.tiles > 0 ? std::min(shares, p.panels) : 0;
    p.first_unit = units;
    units += p.units();
  }
  return k;
}

/// The copy engine's word for a factor: its terms lie a row apart.
CUtensorMap map_of(const ConstView& x, int64_t cols, int64_t terms, int64_t stride) {
  return detail::tensor_map(x.dtype, x.data, {cols, terms, 1, 1}, {1, stride, 64, 64}, kPanel);
}

}  // namespace

bool suits_weights(std::span<const MatmulArgs> products) { return plan(products).has_value(); }

bool multiply_weights(Cuda on, std::span<const MatmulArgs> products) {
  std::optional<WeightsProducts> planned = plan(products);
  if (!planned) return false;
  WeightsProducts& k = *planned;
  WeightsMaps maps{};
  int tiles = 0, units = 0;
  for (size_t i = 0; i < products.size(); ++i) {
    const ConstView &a = products[i].a, &b = products[i].b;
    const int d = a.shape.dim();
    const int64_t terms = a.shape[d - 1];
    const bool turned = k.products[i].turned;
    (turned ? maps.right : maps.left)[i] = map_of(a, a.shape[d - 2], terms, a.strides[d - 1]);
    (turned ? maps.left : maps.right)[i] = map_of(b, b.shape[d - 1], terms, b.strides[d - 2]);
    tiles += k.products[i].tiles, units += k.products[i].units();
  }
  const DeviceScratch<float> parts(on, int64_t{units} * kBlocks * kPartFloats);
  k.parts = parts.data();
  const auto run = [&]<class T>() {
    launch(on,
           {.grid = dim3(static_cast<unsigned>(units * kBlocks)),
            .block = dim3(kThreads),
            .shared = kSharedBytes<WeightsShared<T>>,
            .cluster = kBlocks,
            .overlap = true},
           matmul_weights_hopper_kernel<T>, maps, k);
  };
  if (products[0].a.dtype == bfloat16)
    run.template operator()<BFloat16>();
  else
    run.template operator()<Float16>();
  launch(on,
         {.grid = dim3(static_cast<unsigned>(tiles * kBlocks * kFoldBlocks)),
          .block = dim3(kFoldThreads),
          .overlap = true},
         matmul_weights_fold_kernel, k);
  return true;
}

}  // namespace norma
