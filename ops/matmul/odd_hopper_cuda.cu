#include <algorithm>

#include "norma/core/cuda/cluster.cuh"
#include "norma/core/cuda/launch.cuh"
#include "norma/core/cuda/runtime.h"
#include "norma/core/cuda/stages.cuh"
#include "norma/core/cuda/tensor_map.h"
#include "norma/core/cuda/wgmma.cuh"
#include "norma/ops/matmul/odd_hopper.h"

namespace norma {
namespace {

// Logits of 65 characters and what comes back from them: few columns, or a short sum, of an odd
// length. The copy engine gives zeros beyond both. A block has 128 rows and all columns; of a
// cluster's two blocks each loads half of the right factor for both.
//   bytes  2 rows (k + m); the right factor comes from the second cache

constexpr int kPanel = 64, kStages = 3, kBlocks = 2;  // terms of a panel; blocks of a cluster
constexpr int kPart = 128, kMostParts = 3;            // columns
constexpr int kQuads = kPart / 8;                     // of a part: of 8 columns a lane has two
constexpr int kLoaderRegisters = 24, kComputeRegisters = 240;

template <class T, int kParts>
struct OddShared {
  T left[kStages][kTileRows * kPanel];
  T right[kStages][kParts * kPart * kPanel];
  Barriers<kStages> ready;
};
struct OddMaps {
  CUtensorMap left, right;
};
struct OddProblem {
  void* c;
  int64_t c_stride;
  int rows, cols, panels;
};

/// kAcross: the right factor's rows lie along its columns, not along the sum.
template <class T, bool kAcross, int kParts>
__device__ void load_factors(OddShared<T, kParts>& m, const OddMaps& maps, int panels,
                             int first_row) {
  constexpr int kBoxes = kParts * kPart / kPanel, kMine = kBoxes / kBlocks;  // 64 × 64
  Ring<kStages> at;
  const int rank = static_cast<int>(cluster_rank());
  for (int p = 0; p < panels; ++p, at.next()) {
    SharedBarrier& full = m.ready.acquire(at);
    const int term = p * kPanel;
    full.expect(sizeof m.left[0] + sizeof m.right[0]);
    copy_box(m.left[at.stage], maps.left, full, term, first_row, 0, 0);
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int box = rank * kMine + i, col = box * kPanel;
      copy_box_to((1 << kBlocks) - 1, m.right[at.stage] + box * kPanel * kPanel, maps.right, full,
                  kAcross ? col : term, kAcross ? term : col);
    }
  }
}

template <class T, bool kAcross, int kParts>
__device__ __forceinline__ void multiply(float (&c)[kParts][kPart / 2], OddShared<T, kParts>& m,
                                         int panels, int group) {
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
      const uint64_t a = rows_of(m.left[at.stage], kTileRows, group * 64, term);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const T* b = m.right[at.stage] + part * kPart * kPanel;
        if constexpr (kAcross)
          wgmma_rows<T, kPart, true>(c[part], a, columns_of(b, kPanel, term), p + term > 0);
        else
          wgmma_rows<T, kPart>(c[part], a, rows_of(b, kPart, 0, term), p + term > 0);
      }
    }
    wgmma_commit();
    if (p == 0) continue;
    wgmma_wait<1>();
    release();
  }
  wgmma_wait<0>();
#pragma unroll
  for (auto& part : c) keep_registers(part);
}

/// A thread's rows r and r + 8, 8 columns of 32 at a time.
template <class T, int kParts>
__device__ __forceinline__ void write(const OddProblem& k, const float (&c)[kParts][kPart / 2],
                                      int64_t row, int first_col) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    T* to = static_cast<T*>(k.c) + (row + 8 * i) * k.c_stride + first_col;
#pragma unroll
    for (int t = 0; t < kParts * kPart / 32; ++t) {
      uint32_t w[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int q = 4 * t + j;
        const float* v = c[q / kQuads] + 4 * (q % kQuads) + 2 * i;
        w[j] = pack_pair<T>(v[0], v[1]);
      }
      transpose_quad(w);
      const int left = k.cols - first_col - 32 * t;
      if (row + 8 * i >= k.rows || left <= 0) continue;
      if (left >= 8) {
        *reinterpret_cast<uint4*>(to + 32 * t) = make_uint4(w[0], w[1], w[2], w[3]);
      } else {
#pragma unroll
        for (int e = 0; e < 8; ++e)
          if (e < left)
            to[32 * t + e].bits = static_cast<uint16_t>(e % 2 ? w[e / 2] >> 16 : w[e / 2]);
      }
    }
  }
}

template <class T, bool kAcross, int kParts>
__global__ void __launch_bounds__(kHopperThreads, 1)
    matmul_odd_hopper_kernel(const __grid_constant__ OddMaps maps,
                             const __grid_constant__ OddProblem k) {
  if constexpr (kHasWgmma) {
    auto& m = shared_memory<OddShared<T, kParts>>();
    if (threadIdx.x == 0) {
      m.ready.init(1, kBlocks * kComputingWarps);
      publish_barriers();
    }
    cluster_arrive_relaxed();
    cluster_wait();
    wait_for_previous_kernel();
    const int first_row = static_cast<int>(blockIdx.x) * kTileRows, group = group_of_block() - 1;
    if (group < 0) {
      give_registers<kLoaderRegisters>();
      if (threadIdx.x == 0) load_factors<T, kAcross, kParts>(m, maps, k.panels, first_row);
    } else {
      take_registers<kComputeRegisters>();
      float c[kParts][kPart / 2];
      multiply<T, kAcross, kParts>(c, m, k.panels, group);
      const int lane = threadIdx.x % kWarpSize;
      write<T, kParts>(k, c,
                       first_row + group * 64 + threadIdx.x % kGroup / kWarpSize * 16 + lane / 4,
                       lane % 4 * 8);
    }
    __syncwarp();
    cluster_arrive_relaxed();  // until here the other's copies and arrivals come
    cluster_wait();
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

template <class T, bool kAcross, int kParts>
void start(Cuda on, const MatmulArgs& k) {
  const int d = k.c.shape.dim();
  const int64_t rows = k.c.shape[d - 2], cols = k.c.shape[d - 1], depth = k.a.shape[d - 1];
  const OddMaps maps{map_of(k.a, rows, depth, k.a.strides[d - 2], kTileRows),
                     kAcross ? map_of(k.b, depth, cols, k.b.strides[d - 2], kPanel)
                             : map_of(k.b, cols, depth, k.b.strides[d - 1], kPanel)};
  const OddProblem problem{.c = k.c.data,
                           .c_stride = k.c.strides[d - 2],
                           .rows = static_cast<int>(rows),
                           .cols = static_cast<int>(cols),
                           .panels = static_cast<int>(ceil_div(depth, int64_t{kPanel}))};
  const auto clusters = ceil_div(static_cast<unsigned>(rows), unsigned{kBlocks * kTileRows});
  launch(on,
         {.grid = dim3(clusters * kBlocks),
          .block = dim3(kHopperThreads),
          .shared = kSharedBytes<OddShared<T, kParts>>,
          .cluster = kBlocks,
          .overlap = true},
         matmul_odd_hopper_kernel<T, kAcross, kParts>, maps, problem);
}

}  // namespace

bool multiply_odd(Cuda on, const MatmulArgs& k) {
  const int d = k.c.shape.dim();
  const int64_t rows = k.c.shape[d - 2], cols = k.c.shape[d - 1], depth = k.a.shape[d - 1];
  constexpr int64_t kFewest = 4096, kMost = int64_t{1} << 30;
  if (k.epilogue != MatmulEpilogue::plain || k.bias || k.sums || k.accumulate ||
      size_of(k.a.dtype) != 2 || k.c.dtype != k.a.dtype || !detail::cuda_is_hopper(on.device))
    return false;
  if ((cols % 8 == 0 && depth % 8 == 0) || rows < kFewest || rows > kMost || depth == 0 ||
      depth > kMost || k.c.shape.numel() != rows * cols || k.c.strides[d - 1] != 1)
    return false;
  const bool across = k.b.strides[d - 1] == 1;
  const int parts = cols <= kPart                                 ? 1
                    : cols % 8 == 0 && cols <= kMostParts * kPart ? kMostParts
                                                                  : 0;
  if (parts == 0 || k.a.strides[d - 1] != 1 || (!across && k.b.strides[d - 2] != 1) ||
      !is_wide(k.a.data, k.a.strides[d - 2]) || !is_wide(k.c.data, k.c.strides[d - 2]) ||
      !is_wide(k.b.data, k.b.strides[across ? d - 2 : d - 1]))
    return false;
  const auto run = [&]<class T, bool kAcross>() {
    parts == 1 ? start<T, kAcross, 1>(on, k) : start<T, kAcross, kMostParts>(on, k);
  };
  if (k.a.dtype == bfloat16)
    across ? run.template operator()<BFloat16, true>() : run.template operator()<BFloat16, false>();
  else
    across ? run.template operator()<Float16, true>() : run.template operator()<Float16, false>();
  return true;
}

}  // namespace norma
