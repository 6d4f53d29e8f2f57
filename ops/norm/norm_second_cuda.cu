#include <algorithm>

#include "norma/core/cuda/async_copy.cuh"
#include "norma/ops/norm/backward_any.cuh"
#include "norma/ops/norm/cluster.cuh"

namespace norma {
namespace {

using namespace norm_cuda;

enum { kVX, kGX, kPX, kVG, kV, kG, kP, kSums };  // the sums of a group; the last three if centred

/// What the sums, now means, give for the elements.
template <class Acc>
struct Second {
  Acc mean[kSums], rstd, vjg;  // vᵀJg / D
  __device__ Second(const Acc (&means)[kSums], Acc r) : rstd(r) {
    for (int s = 0; s < kSums; ++s) mean[s] = means[s];
    vjg = mul(rstd, sub(sub(mean[kVG], mul(mean[kV], mean[kG])), mul(mean[kVX], mean[kGX])));
  }
  /// J times a vector of which e is an element.
  __device__ __forceinline__ Acc through(Acc e, Acc x_hat, int level, int along) const {
    return mul(rstd, fused(-x_hat, mean[along], sub(e, mean[level])));
  }
  __device__ __forceinline__ Acc of_h(Acc x_hat, Acc g, Acc p, Acc jv) const {
    const Acc jg = through(g, x_hat, kG, kGX), jp = through(p, x_hat, kP, kPX);
    const Acc less = fused(mean[kGX], jv, fused(mean[kVX], jg, mul(vjg, x_hat)));
    return fused(-rstd, less, jp);
  }
};

/// A row that is so large or small that its own rstd lost digits is scaled as the forward did it.
template <class Acc>
__device__ __forceinline__ bool has_lost_digits(Acc rstd) {
  constexpr Acc kLeast = std::is_same_v<Acc, double> ? Acc(0x1p-1022) : Acc(0x1p-126f);
  return !(rstd >= kLeast && rstd <= largest<Acc>());
}

/// As on the processor: a warp or a block takes rows in turn, forms a group's seven sums and then
/// what they give. Its second look at a row finds it in the caches.
///   bytes  rows · D · (dy, h, v, of_dy, of_h)
///   bound  memory, or for half types what the sums for w read and write of the second cache
template <class Acc, bool kBlock>
__global__ void __launch_bounds__(kAnyThreads)
    norm_second_kernel(const __grid_constant__ NormSecondArgs k, RowOrder order,
                       WeightSums<Acc> sums, int64_t workers) {
  constexpr int kWidth = kLaneWidth<Acc>;
  extern __shared__ __align__(128) unsigned char memory[];
  const Team<Acc, kBlock> team{order, reinterpret_cast<Acc*>(memory)};
  const NormOptions& o = k.options;
  const int64_t cols = k.dy.cols, size = order.n, groups = cols / size;
  const bool centred = o.kind == NormKind::layer;
  const Acc terms = o.kind == NormKind::l2 ? Acc(1) : static_cast<Acc>(size);
  const int64_t worker =
      kBlock ? blockIdx.x
             : int64_t{blockIdx.x} * (kAnyThreads / kWarpSize) + threadIdx.x / kWarpSize;
  if (worker >= workers) return;
  for (int64_t i = worker; i < k.dy.rows; i += workers)
    for (int64_t j = 0; j < groups; ++j) {
      const int64_t first = j * size, stat = i * groups + j;
      const auto h_of = [&](int64_t c, int n, Acc(&h)[kWidth]) { read(k.h, i, first + c, n, h); };
      Stats<Acc> s{k.mean ? k.mean.at<Acc>(stat) : Acc(0),
                   k.mean_rest ? k.mean_rest.at<Acc>(stat) : Acc(0), k.rstd.at<Acc>(stat), Acc(1)};
      if (has_lost_digits(s.rstd)) s = statistics<kWidth>(team, o, h_of);
      const Acc rstd = mul(s.rstd, s.scale);

      const auto of_column = [&](const ConstVec& w, Acc absent, int64_t c, int n, Acc(&v)[kWidth]) {
        for (Acc& e : v) e = absent;
        if (w) read(w, w.n == cols ? first + c : c, n, v);
      };
      struct Vector {
        Acc x_hat[kWidth], dy[kWidth], v[kWidth], gain[kWidth], of_gain[kWidth];
        __device__ Acc g(int e) const { return mul(gain[e], dy[e]); }
        __device__ Acc p(int e) const { return mul(of_gain[e], dy[e]); }
      };
      const auto vector_at = [&](int64_t c, int n, Vector& a) {
        h_of(c, n, a.x_hat);
        for (Acc& e : a.x_hat) e = s.normalized(s.scale == 1 ? e : mul(e, s.scale));
        read(k.dy, i, first + c, n, a.dy);
        for (Acc& e : a.v) e = 0;
        if (k.v) read(k.v, i, first + c, n, a.v);
        of_column(k.w, 1, c, n, a.gain);
        if (k.w && o.zero_centered)
          for (Acc& e : a.gain) e = add(e, Acc(1));
        of_column(k.vw, 0, c, n, a.of_gain);
      };
      Acc mean[kSums];
      team.template sum<kWidth>(mean, [&](int64_t c, int n, LaneSum<Acc>(&lane)[kSums]) {
        Vector a;
        vector_at(c, n, a);
        for (int e = 0; e < kWidth; ++e) {
          if (e >= n) continue;
          const Acc g = a.g(e), p = a.p(e);
          lane[kV].term(e, a.v[e]), lane[kG].term(e, g), lane[kP].term(e, p);
          lane[kVX].product(e, a.v[e], a.x_hat[e]);
          lane[kGX].product(e, g, a.x_hat[e]);
          lane[kPX].product(e, p, a.x_hat[e]);
          lane[kVG].product(e, a.v[e], g);
        }
      });
      for (Acc& m : mean) m = m / terms;
      if (!centred) mean[kV] = mean[kG] = mean[kP] = 0;
      const Second<Acc> second(mean, rstd);

      team.template for_each<kWidth>([&](int64_t c, int n) {
        Vector a;
        vector_at(c, n, a);
        Acc jv[kWidth], out[kWidth];
        for (int e = 0; e < kWidth; ++e) jv[e] = second.through(a.v[e], a.x_hat[e], kV, kVX);
        if (k.of_h) {
          for (int e = 0; e < kWidth; ++e) out[e] = second.of_h(a.x_hat[e], a.g(e), a.p(e), jv[e]);
          write(k.of_h, i, first + c, n, out);
        }
        if (sums.count > 0) {
          const bool fresh = i == worker && (sums.n == cols || j == 0);
          Acc* to = sums.of(worker, 0) + (sums.n == cols ? first + c : c);
          for (Acc& e : out) e = 0;
          if (!fresh) read_from(static_cast<const Acc*>(to), n, out);
          for (int e = 0; e < kWidth; ++e) out[e] = fused(a.dy[e], jv[e], out[e]);
          write_to(to, n, out);
        }
        if (k.of_dy) {
          of_column(k.vb, 0, c, n, out);
          for (int e = 0; e < kWidth; ++e)
            out[e] = fused(a.gain[e], jv[e], fused(a.of_gain[e], a.x_hat[e], out[e]));
          write(k.of_dy, i, first + c, n, out);
        }
      });
    }
}

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
  const Team<float, true> team{order, slots};
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
/// shared memory, each thread's into places of its own; threads meet once a row, for its sums.
///   bytes  rows · D · (dy, h, v, of_dy, of_h)
///   bound  memory
template <class T, int kElements, bool kCentred, bool kCluster>
__global__ void __launch_bounds__(kElements == kFewElements ? 256 : 512,
                                  kElements == kFewElements ? 3 : 1)
    norm_second_rows_kernel(const __grid_constant__ NormSecondArgs k, RowOrder order,
                            WeightSums<float> sums, int cluster) {
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
  const int64_t most = detail::properties(on.device).major >= 9 ? 16 * kMostCols : kMostCols;
  return size == k.dy.cols && size <= most && size % kLaneWidth<T> == 0 && k.dy.rows > 0 &&
         has_whole_vectors<T>(k.dy) && has_whole_vectors<T>(k.h) && has_whole_vectors<T>(k.v) &&
         has_whole_vectors<T>(k.of_dy) && has_whole_vectors<T>(k.of_h) &&
         static_cast<int64_t>(rows_plan<T>(size).shared + kStatic) <=
             detail::cuda_shared_memory(on.device) &&
         !norm_cuda::only_general_plans;
}

template <class T, bool kCentred>
auto rows_kernel(const RowsPlan& plan) {
  if (plan.cluster > 1) return norm_second_rows_kernel<T, kManyElements, kCentred, true>;
  return plan.elements == kFewElements ? norm_second_rows_kernel<T, kFewElements, kCentred, false>
                                       : norm_second_rows_kernel<T, kManyElements, kCentred, false>;
}
template <class T>
void second_by_rows(const Cuda& on, const NormSecondArgs& k, NormBackwardArgs& as_backward,
                    WeightSums<float>& sums) {
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
}

template <class Acc>
void second_any(const Cuda& on, const NormSecondArgs& k, NormBackwardArgs& as_backward,
                WeightSums<Acc>& sums) {
  const int64_t size = k.options.group == 0 ? k.dy.cols : k.options.group;
  const RowOrder order(size, kLaneWidth<Acc>);
  constexpr int kWarps = kAnyThreads / kWarpSize;
  const bool block = order.chunks > 1;
  // No more warps than chunks: a block of 8 for the 2 of 1024 columns would be idle by three
  // quarters.
  const int warps = block ? std::min(kWarps, order.chunks) : kWarps;
  const int64_t workers =
      workers_for(on, as_backward, sums, block ? 4 * kWarps / warps : 4 * kWarps);
  const DeviceScratch<Acc> scratch(on, std::max<int64_t>(1, workers * sums.worker_size()));
  sums.data = scratch.data();
  if (k.dy.rows > 0) {
    if (block)
      launch(on,
             {.grid = grid_for(workers, 1),
              .block = dim3(static_cast<unsigned>(warps * kWarpSize)),
              .shared = team_memory<Acc>(order, 7)},
             norm_second_kernel<Acc, true>, k, order, sums, workers);
    else
      launch(on, {.grid = grid_for(workers, kWarps), .block = dim3(kAnyThreads)},
             norm_second_kernel<Acc, false>, k, order, sums, workers);
  }
  fold(on, sums, k.dy.rows > 0 ? workers : 0, as_backward);
}

/// Calls f with of_w's place as if it were a dw, whose sums and whose folding it has.
template <class Acc, class F>
void with_sums(const NormSecondArgs& k, const F& f) {
  NormBackwardArgs as_backward;
  as_backward.options = k.options, as_backward.options.precise = false;
  as_backward.dy = k.dy, as_backward.dw = k.of_w;
  WeightSums<Acc> sums(as_backward);
  f(as_backward, sums);
}

}  // namespace

void run(Cuda on, const NormSecondArgs& k) {
  if (k.rstd.dtype == float64)
    return with_sums<double>(k, [&](auto& as, auto& sums) { second_any<double>(on, k, as, sums); });
  with_sums<float>(k, [&](auto& as, auto& sums) {
    const auto by_rows = [&]<class T>() {
      if (!runs_by_rows<T>(on, k)) return false;
      second_by_rows<T>(on, k, as, sums);
      return true;
    };
    if (!by_rows.template operator()<float>() && !by_rows.template operator()<BFloat16>() &&
        !by_rows.template operator()<Float16>())
      second_any<float>(on, k, as, sums);
  });
}

}  // namespace norma
