#pragma once

#include <algorithm>

#include "norma/core/cuda/async_copy.cuh"
#include "norma/ops/norm/cluster.cuh"
#include "norma/ops/norm/second.cuh"

namespace norma::norm_cuda {

/// The sums of 4 or 8 values over the warp, value number lane / (32 / N) in each lane: every step
/// sends away the half that the other lane is to have, 6 or 9 exchanges instead of 20 or 40.
template <int N>
__device__ __forceinline__ float spread_sums(float (&v)[N]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  int step = kWarpSize / 2;
#pragma unroll
  for (int half = N / 2; half > 0; half /= 2, step /= 2) {
    const bool upper = lane & step;
#pragma unroll
    for (int s = 0; s < half; ++s) {
      const float away = upper ? v[s] : v[s + half], mine = upper ? v[s + half] : v[s];
      v[s] = add(mine, __shfl_xor_sync(0xffffffffu, away, step));
    }
  }
#pragma unroll
  for (; step > 0; step /= 2) v[0] = add(v[0], __shfl_xor_sync(0xffffffffu, v[0], step));
  return v[0];
}

__device__ __forceinline__ Stats<float> stats_at(const NormSecondArgs& k, int64_t i) {
  return {k.mean ? k.mean.at<float>(i) : 0.0f, k.mean_rest ? k.mean_rest.at<float>(i) : 0.0f,
          k.rstd.at<float>(i), 1.0f};
}
template <class T>
__device__ __noinline__ Stats<float> stats_anew(const NormSecondArgs& k, int64_t i,
                                                const RowOrder& order, float* slots) {
  const Team<float> team{order, slots};
  return statistics<kLaneWidth<float>>(
      team, k.options,
      [&](int64_t c, int n, float(&h)[kLaneWidth<float>]) { read_from(k.h.row<T>(i) + c, n, h); });
}

/// Elements of a thread, and warps of a multiprocessor, whose registers that takes.
constexpr int kFewElements = 8, kManyElements = 16;
constexpr int64_t kMostOfFew = 2048, kMostCols = 8192;
constexpr int warps_at_once(int elements) { return elements == kFewElements ? 24 : 16; }
template <class T>
inline constexpr int kSecondStages = sizeof(T) == 2 ? 3 : 2;

/// The sums of a row that the blocks of a cluster tell each other. Two suffice: who sends those of
/// row n has had all blocks' of row n − 1, whose warps had read those of row n − 2 before.
template <int kValues>
struct ClusterSums {
  SharedBarrier met[2];
  float values[2][16][kValues];
};
/// Of all blocks, from those of this one: each lane has value number lane / (32 / kValues).
template <int kValues>
__device__ __forceinline__ float over_cluster(ClusterSums<kValues>& sums, float mine, int turn,
                                              int blocks) {
  constexpr int kLanes = kWarpSize / kValues;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, slot = turn & 1;
  if (threadIdx.x == 0)
    sums.met[slot].expect(static_cast<uint32_t>(blocks * kValues * int{sizeof(float)}));
  if (threadIdx.x < kWarpSize)
    for (int to = lane % kLanes; to < blocks; to += kLanes)
      send_counted(shared_address(&sums.values[slot][cluster_rank()][lane / kLanes]), mine,
                   BarrierAt{sums.met[slot].address()}, static_cast<uint32_t>(to));
  sums.met[slot].wait(static_cast<uint32_t>(turn) / 2 & 1);
  float total = 0;
  for (int from = lane % kLanes; from < blocks; from += kLanes)
    total = add(total, sums.values[slot][from][lane / kLanes]);
  return lanes_sum(total, kLanes);
}

/// Rows of T in one group: a block or cluster takes rows in turn, a thread the same columns of
/// each, whose weights and whose sums for w it holds. Asynchronous copies bring the next rows into
/// shared memory, each thread's into places of its own; threads meet once a row, for its sums. For
/// Hopper and newer GPUs.
///   bytes  rows · D · (dy, h, v, of_dy, of_h)
///   bound  memory
template <class T, int kElements, bool kCentred, bool kCluster>
__global__ void __launch_bounds__(kElements == kFewElements ? 256 : 512,
                                  kElements == kFewElements ? 3 : 1)
    norm_second_rows_kernel(const __grid_constant__ NormSecondArgs k, RowOrder order,
                            WeightSums<float> sums, int cluster) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // older ones are spared the compilation
  constexpr int kWidth = kLaneWidth<T>, kVecs = kElements / kWidth, kTensors = 3;
  constexpr int kStages = kSecondStages<T>, kValues = kCentred ? 8 : 4;
  using Vector = Packed<T, kWidth>;
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ float slots[2][16][kValues];
  __shared__ ClusterSums<kValues> of_blocks;
  if constexpr (kCluster) {
    if (threadIdx.x == 0) {
      for (SharedBarrier& b : of_blocks.met) b.init(1);
      publish_barriers();
    }
    cluster_sync();
  }
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize, lane = thread % kWarpSize, warps = threads / kWarpSize;
  const int cols = static_cast<int>(k.dy.cols);
  Vector* const mine = reinterpret_cast<Vector*>(memory) + thread;
  float* const scratch = reinterpret_cast<float*>(memory) +
                         kStages * kVecs * kTensors * threads * (16 / int(sizeof(float)));
  const auto place = [&](int stage, int v, int which) {
    return mine + ((stage * kVecs + v) * kTensors + which) * threads;
  };
  const int first = kCluster ? static_cast<int>(cluster_rank()) * threads * kElements : 0;
  const auto column = [&](int v) { return first + (v * threads + thread) * kWidth; };
  const auto ask = [&](int64_t i, int stage) {
    if (i < k.dy.rows)
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
        if (column(v) >= cols) break;
#pragma unroll
        for (int which = 0; which < kTensors; ++which) {
          const ConstRows& from = which == 0 ? k.dy : which == 1 ? k.h : k.v;
          if (which == 2 && !k.v) break;
          copy_16(place(stage, v, which), from.row<T>(i) + column(v));
        }
      }
    commit_copies();  // of nothing, at the end: they are counted
  };
  float gain[kElements], of_gain[kElements], of_w[kElements];
#pragma unroll
  for (int v = 0; v < kVecs; ++v) {
    float w[kWidth], vw[kWidth];
#pragma unroll
    for (int e = 0; e < kWidth; ++e) w[e] = 1, vw[e] = 0;
    if (column(v) < cols) {
      if (k.w) read(k.w, column(v), kWidth, w);
      if (k.vw) read(k.vw, column(v), kWidth, vw);
    } else {  // no column: nothing to read, and no part in sums
      for (int stage = 0; stage < kStages; ++stage)
        for (int which = 0; which < kTensors; ++which) *place(stage, v, which) = Vector{};
    }
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      gain[v * kWidth + e] = k.w && k.options.zero_centered ? add(w[e], 1.0f) : w[e];
      of_gain[v * kWidth + e] = vw[e], of_w[v * kWidth + e] = 0;
    }
  }
  const float terms = k.options.kind == NormKind::l2 ? 1.0f : static_cast<float>(cols);
  const int64_t workers = kCluster ? gridDim.x / static_cast<unsigned>(cluster) : gridDim.x;
  const int64_t worker = kCluster ? blockIdx.x / static_cast<unsigned>(cluster) : blockIdx.x;
  int64_t i = worker;
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) ask(i + stage * workers, stage);
  Stats<float> next = stats_at(k, i);
  int stage = 0, turn = 0;
#pragma unroll 1
  for (; i < k.dy.rows; i += workers) {
    Stats<float> s = next;
    if (i + workers < k.dy.rows) next = stats_at(k, i + workers);
    if (has_lost_digits(s.rstd)) s = stats_anew<T>(k, i, order, scratch);
    const float rstd = mul(s.rstd, s.scale);
    const Normalize<float> normalize(s);
    struct Elements {
      float x_hat[kWidth], dy[kWidth], v[kWidth];
    };
    const auto elements_of = [&](int v, Elements& a) {
      const Vector dy = *place(stage, v, 0), h = *place(stage, v, 1);
      Vector in_v{};
      if (k.v) in_v = *place(stage, v, 2);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        const float u = mul(convert<float>(h[e]), s.scale);
        a.x_hat[e] = kCentred ? normalize(u) : mul(u, s.rstd);
        a.dy[e] = convert<float>(dy[e]), a.v[e] = convert<float>(in_v[e]);
      }
    };
    wait_for_copies<kStages - 1>();
    float part[kValues] = {};
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      Elements a;
      elements_of(v, a);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        const float g = mul(gain[v * kWidth + e], a.dy[e]);
        const float p = mul(of_gain[v * kWidth + e], a.dy[e]);
        part[kVX] = fused(a.v[e], a.x_hat[e], part[kVX]);
        part[kGX] = fused(g, a.x_hat[e], part[kGX]);
        part[kPX] = fused(p, a.x_hat[e], part[kPX]);
        part[kVG] = fused(a.v[e], g, part[kVG]);
        if constexpr (kCentred)
          part[kV] = add(part[kV], a.v[e]), part[kG] = add(part[kG], g),
          part[kP] = add(part[kP], p);
      }
    }
    constexpr int kLanes = kWarpSize / kValues;  // that have the same value
    float total = spread_sums(part);
    if (warps > 1) {
      if (lane % kLanes == 0) slots[turn & 1][warp][lane / kLanes] = total;
      __syncthreads();  // once a row: the next row's sums go to the other slots
      total = 0;
      for (int w = lane % kLanes; w < warps; w += kLanes)
        total = add(total, slots[turn & 1][w][lane / kLanes]);
      total = lanes_sum(total, kLanes);
    }
    if constexpr (kCluster) total = over_cluster(of_blocks, total, turn, cluster);
    ++turn;
    total = total / terms;
    float mean[kSums] = {};
#pragma unroll
    for (int value = 0; value < (kCentred ? int(kSums) : 4); ++value)
      mean[value] = __shfl_sync(0xffffffffu, total, value * kLanes);
    const Second<float> second(mean, rstd);
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      const int c = column(v);
      if (c >= cols) break;
      Elements a;
      elements_of(v, a);
      float of_h[kWidth], of_dy[kWidth];
      for (float& e : of_dy) e = 0;
      if (k.vb) read(k.vb, c, kWidth, of_dy);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        const int at = v * kWidth + e;
        const float jv = second.through(a.v[e], a.x_hat[e], kV, kVX);
        of_h[e] = second.of_h(a.x_hat[e], mul(gain[at], a.dy[e]), mul(of_gain[at], a.dy[e]), jv);
        of_dy[e] = fused(gain[at], jv, fused(of_gain[at], a.x_hat[e], of_dy[e]));
        of_w[at] = fused(a.dy[e], jv, of_w[at]);
      }
      if (k.of_h) write_whole(k.of_h.row<T>(i) + c, of_h);
      if (k.of_dy) write_whole(k.of_dy.row<T>(i) + c, of_dy);
    }
    ask(i + kStages * workers, stage);
    stage = stage + 1 < kStages ? stage + 1 : 0;
  }
  if constexpr (kCluster) cluster_sync();  // nobody leaves while others may write to it
  if (sums.count == 0) return;
#pragma unroll
  for (int v = 0; v < kVecs; ++v) {
    if (column(v) >= cols) break;
    float out[kWidth];
#pragma unroll
    for (int e = 0; e < kWidth; ++e) out[e] = of_w[v * kWidth + e];
    write_whole(sums.of(worker, 0) + column(v), out);
  }
#endif
}

template <class T, class View>
bool has_whole_vectors(const View& t) {
  return !t || (t.dtype == dtype_of<T> && reinterpret_cast<uintptr_t>(t.data) % 16 == 0 &&
                t.row_stride % kLaneWidth<T> == 0);
}
struct RowsPlan {
  int elements, cluster, warps;  ///< of a thread; blocks a row; of a block
  size_t shared;                 ///< a block's memory: the ring, then what a row formed anew takes
};
template <class T>
RowsPlan rows_plan(int64_t cols) {
  const int elements = cols <= kMostOfFew ? kFewElements : kManyElements;
  int cluster = 1;
  while (cluster * kMostCols < cols) cluster *= 2;
  const auto warps = static_cast<int>(ceil_div(cols, int64_t{elements} * kWarpSize * cluster));
  const auto ring = static_cast<size_t>(warps * kWarpSize * elements) * sizeof(T) * 3;
  return {elements, cluster, warps,
          ring * kSecondStages<T> + team_memory<float>(RowOrder(cols, kLaneWidth<float>), 2)};
}
template <class T>
bool runs_by_rows(const Cuda& on, const NormSecondArgs& k) {
  const int64_t size = k.options.group == 0 ? k.dy.cols : k.options.group;
  constexpr size_t kStatic = 3072;
  return has_fast_plans(on) && size == k.dy.cols && size <= 16 * kMostCols &&
         size % kLaneWidth<T> == 0 && k.dy.rows > 0 && has_whole_vectors<T>(k.dy) &&
         has_whole_vectors<T>(k.h) && has_whole_vectors<T>(k.v) && has_whole_vectors<T>(k.of_dy) &&
         has_whole_vectors<T>(k.of_h) &&
         static_cast<int64_t>(rows_plan<T>(size).shared + kStatic) <=
             detail::cuda_shared_memory(on.device);
}

template <class T, bool kCentred>
auto rows_kernel(const RowsPlan& plan) {
  if (plan.cluster > 1) return norm_second_rows_kernel<T, kManyElements, kCentred, true>;
  return plan.elements == kFewElements ? norm_second_rows_kernel<T, kFewElements, kCentred, false>
                                       : norm_second_rows_kernel<T, kManyElements, kCentred, false>;
}
template <class T>
bool second_by_rows(const Cuda& on, const NormSecondArgs& k, NormBackwardArgs& as_backward,
                    WeightSums<float>& sums) {
  if (!runs_by_rows<T>(on, k)) return false;
  const RowsPlan plan = rows_plan<T>(k.dy.cols);
  const auto kernel =
      k.options.kind == NormKind::layer ? rows_kernel<T, true>(plan) : rows_kernel<T, false>(plan);
  const int threads = plan.warps * kWarpSize;
  int64_t workers = 0;
  if (plan.cluster == 1)
    workers = workers_for(on, as_backward, sums, warps_at_once(plan.elements) / plan.warps);
  else
    workers = std::min<int64_t>(
        k.dy.rows, k.options.portable ? 128 / plan.cluster
                                      : resident_clusters(on, reinterpret_cast<const void*>(kernel),
                                                          threads, plan.shared, plan.cluster));
  const DeviceScratch<float> scratch(on, std::max<int64_t>(1, workers * sums.worker_size()));
  sums.data = scratch.data();
  launch(on,
         {.grid = grid_for(workers * plan.cluster, 1),
          .block = dim3(static_cast<unsigned>(threads)),
          .shared = plan.shared,
          .cluster = static_cast<unsigned>(plan.cluster)},
         kernel, k, RowOrder(k.dy.cols, kLaneWidth<float>), sums, plan.cluster);
  fold(on, sums, workers, as_backward);
  return true;
}

}  // namespace norma::norm_cuda
