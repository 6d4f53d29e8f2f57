#pragma once

#include "norma/ops/norm/backward_any.cuh"
#include "norma/ops/norm/cluster.cuh"
#include "norma/ops/norm/forward_held.cuh"

namespace norma::norm_cuda {

/// How norm_backward_ring_kernel runs.
struct RingPlan {
  RowOrder order;
  int64_t groups = 1;
  int64_t items = 0;   ///< rows × groups, or rows where a worker keeps to one group
  int bound = 1;       ///< groups that workers are bound to: those with weights of their own
  int cluster = 1;     ///< blocks a group
  int warps = 1;       ///< of a block that compute; one more copies
  int team_warps = 1;  ///< warps a group in this block
  int rows = 1;        ///< groups at a time in a block
  int stages = 2;
  int lag = 1;                                      ///< turns after which a stage is sent for anew
  bool dense = false;                               ///< the rows of a tile lie one after another
  uint32_t h_bytes = 0, dh_bytes = 0, t_bytes = 0;  ///< a group's slice in this block
  uint32_t stage_bytes = 0;
};

inline constexpr int kSlots = 4;  // sums on their way: see below
inline constexpr int kMostClusterChunks = 256;

/// The ring in shared memory.
struct RingMemory {
  Barrier full[8], empty[8];
  Barrier slot_full[16][kSlots];
};

template <class T, int kVecs, bool kBlock>
inline constexpr int kRingWarps = kBlock || kVecs* kLaneWidth<T> <= 16 ? 16 : 8;

/// The plain members, each tensor read once. Blocks live for the whole call. Warp 0 sends for
/// slices of h, dy, z and dh, which the bulk copy engine brings into a ring of stages; warps read a
/// row from its stage, form its two sums and add to the weights' gradients in registers, send their
/// chunk's sums to every block of the cluster, and only then finish the row before: no barrier of a
/// block or cluster in the loop. A row of one warp is finished at once.
///   Four slots of sums suffice: who sends those of row n has finished row n − 2, for which all
///   others had sent theirs, and so had read those of row n − 4.
///   bytes  rows · D · (h, dy, dx and where they are: z, dz, dh, dresidual), and a row of sums a
///   block bound  memory
template <class T, GateOrder kGate, int kVecs, bool kBlock>
__global__ void __launch_bounds__(kRingWarps<T, kVecs, kBlock>* kWarpSize, 1)
    norm_backward_ring_kernel(const __grid_constant__ NormBackwardArgs k,
                              const __grid_constant__ RingPlan plan, WeightSums<float> sums) {
  using Acc = float;
  constexpr int kWidth = kLaneWidth<T>;
  constexpr bool kGateFirst = kGate == GateOrder::gate_then_norm;
  constexpr bool kGateLast = kGate == GateOrder::norm_then_gate;
  constexpr bool kGated = kGateFirst || kGateLast;
  extern __shared__ __align__(128) unsigned char memory[];
  auto& ring = *reinterpret_cast<RingMemory*>(memory);
  auto* slots = reinterpret_cast<float2*>(memory + sizeof(RingMemory));
  unsigned char* stages = memory + 1024 + (kBlock ? 16 * kMostClusterChunks * sizeof(float2) : 0);
  const NormOptions& o = k.options;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const uint32_t rank = plan.cluster > 1 ? cluster_rank() : 0;
  const int size = static_cast<int>(plan.order.n);
  const int64_t worker = blockIdx.x / plan.cluster, workers = gridDim.x / plan.cluster;
  const int64_t worker_group = worker % plan.bound;
  const int64_t tiles = ceil_div(plan.items, int64_t{plan.rows});
  const int64_t first_tile = worker / plan.bound, step = workers / plan.bound;
  const int chunks_here = plan.team_warps;
  const int slice_first = static_cast<int>(rank) * chunks_here * kChunk;  // of a group, in elements
  const auto row_of = [&](int64_t item) {
    return plan.bound > 1 || plan.groups == 1 ? item : item / plan.groups;
  };
  const auto group_of = [&](int64_t item) {
    return plan.bound > 1 ? worker_group : plan.groups == 1 ? 0 : item % plan.groups;
  };

  if (threadIdx.x == 0) {
    for (int s = 0; s < plan.stages; ++s) ring.full[s].init(1), ring.empty[s].init(plan.warps);
    if (kBlock)
      for (int t = 0; t < plan.rows; ++t)
        for (int s = 0; s < kSlots; ++s) ring.slot_full[t][s].init(plan.order.chunks);
    barriers_are_visible();
  }
  __syncthreads();
  if (plan.cluster > 1) cluster_sync();

  // The last block of a cluster may have a shorter slice.
  const int in_slice =
      !kBlock ? size : std::max(0, std::min(size - slice_first, chunks_here * kChunk));
  const auto bytes_of = [&](DType t) {
    return static_cast<uint32_t>(in_slice) * static_cast<uint32_t>(size_of(t));
  };
  int64_t load_tile = first_tile;
  int load_stage = 0;
  uint32_t load_parity = 1;
  const auto send_for = [&] {
    if (load_tile >= tiles) return;
    Barrier& full = ring.full[load_stage];
    const int64_t left = plan.items - load_tile * plan.rows;
    const int rows = left < plan.rows ? static_cast<int>(left) : plan.rows;
    if (lane == 0) {
      ring.empty[load_stage].wait(load_parity);
      uint32_t bytes = bytes_of(k.h.dtype) + bytes_of(dtype_of<T>) * (kGated ? 2 : 1);
      if (k.dh) bytes += bytes_of(k.dh.dtype);
      full.arrive_expecting(bytes * static_cast<uint32_t>(rows));
    }
    __syncwarp();
    unsigned char* to = stages + static_cast<size_t>(load_stage) * plan.stage_bytes;
    const auto all = static_cast<uint32_t>(plan.rows);
    const auto copy = [&](const ConstRows& t, uint32_t offset, uint32_t pitch) {
      const auto* base = static_cast<const unsigned char*>(t.data);
      if (plan.dense) {
        if (lane == 0)
          bulk_copy(to + offset, base + load_tile * plan.rows * size * size_of(t.dtype),
                    bytes_of(t.dtype) * static_cast<uint32_t>(rows), full);
        return;
      }
      for (int r = lane; r < rows && in_slice > 0; r += kWarpSize) {
        const int64_t item = load_tile * plan.rows + r, row = row_of(item);
        const int64_t at = group_of(item) * size + slice_first;
        bulk_copy(to + offset + static_cast<uint32_t>(r) * pitch,
                  base + (row * t.row_stride + at) * size_of(t.dtype), bytes_of(t.dtype), full);
      }
    };
    copy(k.h, 0, plan.h_bytes);
    copy(k.dy, all * plan.h_bytes, plan.t_bytes);
    if (kGated) copy(k.z, all * (plan.h_bytes + plan.t_bytes), plan.t_bytes);
    if (k.dh) copy(k.dh, all * (plan.h_bytes + plan.t_bytes * (kGated ? 2 : 1)), plan.dh_bytes);
    load_tile += step;
    if (++load_stage == plan.stages) load_stage = 0, load_parity ^= 1;
  };
  if (warp == 0)
    for (int s = 0; s < plan.stages; ++s) send_for();

  // Who this thread is among those that compute.
  const int lanes = kBlock ? kWarpSize : plan.order.lanes;
  const int bits = 31 - __clz(lanes), lane_in = lane & (lanes - 1);
  const int team = kBlock ? warp / plan.team_warps : (warp << (5 - bits)) + (lane >> bits);
  const int team_warp = kBlock ? warp % plan.team_warps : 0;
  const int chunk = static_cast<int>(rank) * chunks_here + team_warp;
  const int column0 = kBlock ? chunk * kChunk : 0;  // of a group
  const auto local = [&](int v) {                   // in the block's slice
    return (kBlock ? team_warp * kChunk : 0) + (v * lanes + lane_in) * kWidth;
  };
  const auto exists = [&](int v) { return column0 + (v * lanes + lane_in) * kWidth < size; };
  Acc gain[kVecs][kWidth], dw[kVecs][kWidth] = {}, db[kVecs][kWidth] = {};
  {
    const int64_t w_first = k.w.n == size ? 0 : worker_group * size;
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) gain[v][e] = 1;
      if (!k.w || !exists(v)) continue;
      read_weight<T, true>(k.w, w_first + slice_first + local(v), kWidth, gain[v]);
      if (o.zero_centered)
#pragma unroll
        for (int e = 0; e < kWidth; ++e) gain[v][e] = add(gain[v][e], Acc(1));
    }
    const bool wide_h = k.h.dtype != dtype_of<T>, centred = o.kind == NormKind::layer;
    const bool wants_db = sums.place[1] >= 0;
    const Acc terms = o.kind == NormKind::l2 ? Acc(1) : static_cast<Acc>(size);
    const uint32_t all = static_cast<uint32_t>(plan.rows);
    const uint32_t dy_at = all * plan.h_bytes, z_at = dy_at + all * plan.t_bytes;
    const uint32_t dh_at = kGated ? z_at + all * plan.t_bytes : z_at;
    struct Item {
      int64_t number;
      Stats<Acc> stats;
      bool real;
    };
    const auto item_of = [&](int64_t tile) {
      Item item{tile * plan.rows + team, {}, false};
      item.real = tile < tiles && item.number < plan.items;
      if (!item.real) return item;
      const int64_t stat = plan.bound > 1 ? item.number * plan.groups + worker_group : item.number;
      if (k.mean) item.stats.mean = k.mean.at<Acc>(stat);
      if (k.mean_rest) item.stats.mean_rest = k.mean_rest.at<Acc>(stat);
      item.stats.rstd = k.rstd.at<Acc>(stat);
      return item;
    };
    const auto wide_vector = [&](const unsigned char* from, bool wide, int v, Acc(&to)[kWidth]) {
      if (wide)
        read_whole(reinterpret_cast<const Acc*>(from) + local(v), to);
      else
        read_whole(reinterpret_cast<const T*>(from) + local(v), to);
    };
    // x̂ and g of a vector in its stage, and what they were made of.
    struct Vector {
      Acc h[kWidth], x_hat[kWidth], dy[kWidth], dn[kWidth];
      Gate<Acc> gate[kGated ? kWidth : 1];
    };
    const auto vector_at = [&](const unsigned char* stage, const Item& item, int v, Vector& r) {
      const auto t = static_cast<uint32_t>(team);
      wide_vector(stage + t * plan.h_bytes, wide_h, v, r.h);
      wide_vector(stage + dy_at + t * plan.t_bytes, false, v, r.dy);
      if constexpr (kGated) {
        Acc z[kWidth];
        wide_vector(stage + z_at + t * plan.t_bytes, false, v, z);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) r.gate[e] = short_gate_of(o, z[e]);
      }
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        Acc u = r.h[e];
        if constexpr (kGateFirst) u = mul(u, r.gate[e].value);
        r.x_hat[e] = centred ? item.stats.normalized(u) : mul(u, item.stats.rstd);
        r.dn[e] = r.dy[e];
        if constexpr (kGateLast) r.dn[e] = mul(r.dy[e], r.gate[e].value);
      }
    };
    const auto begin = [&](const unsigned char* stage, const Item& item, LaneSum<Acc>& gx,
                           LaneSum<Acc>& g_sum) {
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
        if (!exists(v)) continue;
        Vector r;
        vector_at(stage, item, v, r);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) {
          const Acc g = mul(gain[v][e], r.dn[e]);
          gx.product(e, g, r.x_hat[e]);
          if (centred) g_sum.term(e, g);
          dw[v][e] = fused(r.dn[e], r.x_hat[e], dw[v][e]);
        }
        if (wants_db)
#pragma unroll
          for (int e = 0; e < kWidth; ++e) db[v][e] = add(db[v][e], r.dn[e]);
      }
    };
    const auto finish = [&](const unsigned char* stage, const Item& item, Acc gx, Acc g_sum) {
      const Acc mean_gx = gx / terms, mean_g = centred ? g_sum / terms : Acc(0);
      const int64_t row = row_of(item.number);
      const int64_t at = group_of(item.number) * size + slice_first;
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
        if (!exists(v)) continue;
        Vector r;
        vector_at(stage, item, v, r);
        Acc du[kWidth];
#pragma unroll
        for (int e = 0; e < kWidth; ++e) {
          const Acc g = mul(gain[v][e], r.dn[e]);
          du[e] = mul(item.stats.rstd, fused(-r.x_hat[e], mean_gx, sub(g, mean_g)));
        }
        if constexpr (kGated) {
          Acc dz[kWidth], bias[kWidth];
          if (kGateLast) {
#pragma unroll
            for (int e = 0; e < kWidth; ++e) bias[e] = 0;
            if (k.b)
              read_weight<T, true>(k.b, (k.b.n == size ? slice_first : at) + local(v), kWidth,
                                   bias);
          }
#pragma unroll
          for (int e = 0; e < kWidth; ++e) {
            if constexpr (kGateFirst) {
              dz[e] = mul(mul(du[e], r.h[e]), r.gate[e].slope);
              du[e] = mul(du[e], r.gate[e].value);
            } else {
              const Acc product = mul(gain[v][e], r.x_hat[e]);  // an absent bias adds no +0 to −0
              const Acc n = k.b ? add(product, bias[e]) : product;
              dz[e] = mul(mul(r.dy[e], n), r.gate[e].slope);
            }
          }
          if (k.dz) write_whole(k.dz.row<T>(row) + at + local(v), dz);
        }
        if (k.dh) {
          Acc dh[kWidth];
          wide_vector(stage + dh_at + static_cast<uint32_t>(team) * plan.dh_bytes,
                      k.dh.dtype != dtype_of<T>, v, dh);
#pragma unroll
          for (int e = 0; e < kWidth; ++e) du[e] = add(du[e], dh[e]);
        }
        if (k.dresidual) {
          if (k.dresidual.dtype == dtype_of<T>)
            write_whole(k.dresidual.row<T>(row) + at + local(v), du);
          else
            write_whole(k.dresidual.row<Acc>(row) + at + local(v), du);
        }
        if (k.dx) write_whole(k.dx.row<T>(row) + at + local(v), du);
      }
    };

    int stage = 0, number = 0, before_stage = 0;
    uint32_t parity = 0;
    Item item = item_of(first_tile), before = item;
    bool waiting = false;
    const auto finish_before = [&](int n) {  // row n of this block, begun a turn ago
      if constexpr (kBlock) {
        const int slot = n % kSlots;
        const unsigned char* at = stages + static_cast<size_t>(before_stage) * plan.stage_bytes;
        if (before.real) {
          const uint32_t parity_of = static_cast<uint32_t>(n / kSlots) & 1;
          if (plan.cluster > 1)
            ring.slot_full[team][slot].wait_in_cluster(parity_of);
          else
            ring.slot_full[team][slot].wait(parity_of);
          const float2* from = slots + (team * kSlots + slot) * plan.order.chunks;
          Acc gx = 0, g = 0;
          for (int c = lane; c < plan.order.chunks; c += kWarpSize) {
            const float2 s = from[c];
            gx = c == lane ? s.x : add(gx, s.x), g = c == lane ? s.y : add(g, s.y);
          }
          finish(at, before, lanes_sum(gx, kWarpSize), lanes_sum(g, kWarpSize));
        }
        __syncwarp();
        if (lane == 0) ring.empty[before_stage].arrive();
      }
    };
    for (int64_t tile = first_tile; tile < tiles; tile += step, ++number) {
      const Item next = item_of(tile + step);  // its statistics are on their way meanwhile
      const unsigned char* at = stages + static_cast<size_t>(stage) * plan.stage_bytes;
      ring.full[stage].wait(parity);
      LaneSum<Acc> gx, g;
      if (item.real) begin(at, item, gx, g);
      const Acc gx_sum = lanes_sum(gx.total(), lanes);
      const Acc g_sum = centred ? lanes_sum(g.total(), lanes) : Acc(0);
      if constexpr (kBlock) {
        if (item.real) {
          const int slot = number % kSlots;
          Barrier& arrived = ring.slot_full[team][slot];
          float2* to = slots + (team * kSlots + slot) * plan.order.chunks + chunk;
          if (chunk < plan.order.chunks) {
            if (plan.cluster > 1) {
              if (lane < plan.cluster)
                send(to, gx_sum, g_sum, &arrived, static_cast<uint32_t>(lane));
            } else if (lane == 0) {
              *to = float2{gx_sum, g_sum};
              arrived.arrive();
            }
          }
        }
        if (waiting) finish_before(number - 1);
        before = item, before_stage = stage, waiting = true;
      } else {
        if (item.real) finish(at, item, gx_sum, g_sum);
        __syncwarp();
        if (lane == 0) ring.empty[stage].arrive();
      }
      // A turn after its stage was free, if there are stages enough: then nobody is waited for.
      if (warp == 0 && number >= plan.lag) send_for();
      item = next;
      if (++stage == plan.stages) stage = 0, parity ^= 1;
    }
    if (waiting) finish_before(number - 1);
  }

  // The teams' sums for the weights, one after another, where the ring was.
  __syncthreads();
  if (plan.cluster > 1) cluster_sync();  // nobody leaves while others may still write to it
  if (sums.count == 0) return;
  auto* shared = reinterpret_cast<Acc*>(stages);
  const int64_t slice =
      kBlock ? int64_t{chunks_here} * kChunk : int64_t{plan.order.vecs} * lanes * kWidth;
  const int64_t w_first = sums.n == size ? 0 : worker_group * size;
  const int64_t place = sums.n == size ? worker : worker / plan.bound;
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    if (sums.place[which] < 0) continue;
#pragma unroll
    for (int v = 0; v < kVecs; ++v)
      write_whole(shared + team * slice + local(v), which == 0 ? dw[v] : db[v]);
    __syncthreads();
    Acc* to = sums.of(place, which) + w_first + slice_first;
    for (int64_t c = threadIdx.x; c < slice && slice_first + c < size; c += blockDim.x) {
      Acc sum = shared[c];
      for (int t = 1; t < plan.rows; ++t) sum = add(sum, shared[t * slice + c]);
      to[c] = sum;
    }
    __syncthreads();
  }
}

template <class T>
bool can_ring(const Cuda& on, const NormBackwardArgs& k) {
  const NormOptions& o = k.options;
  const int64_t size = o.group == 0 ? k.dy.cols : o.group;
  const auto weight = [](const ConstVec& w) {
    return !w || w.dtype == dtype_of<T> || w.dtype == DType::float32;
  };
  const auto even = [&](const auto& t) { return is_even<T>(t, size); };
  // Where eps is so small that rstd may overflow, rows are looked at one by one.
  return !std::is_same_v<T, double> && detail::properties(on.device).major >= 9 &&
         o.activation != GateActivation::gelu && o.casting == Casting::wide && o.dropout == 0 &&
         !o.precise && o.eps > 1e-37 && k.h && !k.row_scale && !k.w2 && !k.dy2 && !k.drow_scale &&
         !k.mean_gx && !k.g_norm && !k.du_norm && k.dy.dtype == dtype_of<T> && weight(k.w) &&
         weight(k.b) && k.dy.rows > 0 && even(k.h) && even(k.dy) && even(k.z) && even(k.dh) &&
         even(k.dx) && even(k.dz) && even(k.dresidual) && on_16_bytes(k.w) && on_16_bytes(k.b);
}

/// Runs it, or says that the sizes do not fit.
template <class T, GateOrder kGate>
bool backward_ring(const Cuda& on, const NormBackwardArgs& k) {
  const int64_t size = k.options.group == 0 ? k.dy.cols : k.options.group;
  constexpr bool kGated = kGate != GateOrder::no_gate;
  constexpr size_t kMemory = 220 << 10;
  RingPlan plan{.order = RowOrder(size, kLaneWidth<T>), .groups = k.dy.cols / size};
  WeightSums<float> sums(k);
  const int64_t w_length = k.w ? k.w.n : k.b ? k.b.n : sums.count > 0 ? sums.n : size;
  if (w_length != size) plan.bound = static_cast<int>(std::min<int64_t>(plan.groups, 1 << 20));
  plan.items = plan.bound > 1 ? k.dy.rows : k.dy.rows * plan.groups;
  const int64_t element =
      size_of(k.h.dtype) + int64_t{sizeof(T)} * (kGated ? 2 : 1) + (k.dh ? size_of(k.dh.dtype) : 0);
  const bool block = plan.order.chunks > 1;
  const size_t fixed = 1024 + (block ? 16 * kMostClusterChunks * sizeof(float2) : 0);
  int64_t slice = size;
  int most_warps = 16;
  if (block) {
    // As many chunks a block as leave four stages. Three would give gated rows twice the warps: not
    // tried on a GPU yet.
    int most = 16;
    while (most > 4 && (kMemory - fixed) / static_cast<size_t>(most * kChunk * element) < 4)
      most /= 2;
    while (plan.cluster * most < plan.order.chunks) plan.cluster *= 2;
    while (plan.cluster > 8 && most < 16) plan.cluster /= 2, most *= 2;
    if (plan.cluster > 16) return false;
    plan.team_warps = ceil_div(plan.order.chunks, plan.cluster);
    plan.rows = plan.cluster > 1 ? 1 : std::max(1, most / plan.team_warps);
    plan.warps = plan.rows * plan.team_warps;
    slice = int64_t{plan.team_warps} * kChunk;
  } else {
    most_warps = plan.order.vecs * kLaneWidth<T> <= 16 ? 16 : 8;
    plan.warps = most_warps;
    plan.rows = plan.warps * (kWarpSize / plan.order.lanes);
    // Two rows of a stage may not be larger than half of the memory.
    while (plan.warps > 1 &&
           (kMemory - fixed) / static_cast<size_t>(plan.rows * size * element) < 3)
      plan.warps /= 2, plan.rows /= 2;
  }
  const auto dense = [&](const auto& t) { return !t || t.row_stride == t.cols; };
  plan.dense = plan.cluster == 1 && plan.bound == 1 && dense(k.h) && dense(k.dy) && dense(k.z) &&
               dense(k.dh) && size % kChunk * int64_t{block} == 0;
  plan.h_bytes = static_cast<uint32_t>(slice * size_of(k.h.dtype));
  plan.t_bytes = static_cast<uint32_t>(slice * int64_t{sizeof(T)});
  plan.dh_bytes = k.dh ? static_cast<uint32_t>(slice * size_of(k.dh.dtype)) : 0;
  plan.stage_bytes = static_cast<uint32_t>(plan.rows * slice * element);
  plan.stages = static_cast<int>(std::min<size_t>(8, (kMemory - fixed) / plan.stage_bytes));
  if (plan.stages < 2) return false;
  plan.lag = block ? (plan.stages > 4 ? 2 : 1) : plan.stages > 3 ? 1 : 0;
  const int64_t padded =
      block ? slice : int64_t{plan.order.vecs} * plan.order.lanes * kLaneWidth<T>;
  const size_t shared =
      fixed + std::max<size_t>(static_cast<size_t>(plan.stages) * plan.stage_bytes,
                               static_cast<size_t>(plan.rows * padded) * 4);
  const int64_t tiles = ceil_div(plan.items, int64_t{plan.rows});

  const auto go = [&]<int kVecs, bool kBlock>() {
    const auto kernel = norm_backward_ring_kernel<T, kGate, kVecs, kBlock>;
    const int threads = plan.warps * kWarpSize;
    int64_t workers = k.options.portable
                          ? 128 / plan.cluster
                          : resident_clusters(on, reinterpret_cast<const void*>(kernel), threads,
                                              shared, plan.cluster);
    workers = std::min(workers, tiles * plan.bound);
    workers = workers / plan.bound * plan.bound;
    if (workers < 1) return false;
    const int64_t places = workers / (sums.n == size ? 1 : plan.bound);
    const DeviceScratch<float> scratch(on, std::max<int64_t>(1, places * sums.worker_size()));
    sums.data = scratch.data();
    launch(on,
           {.grid = dim3(static_cast<unsigned>(workers * plan.cluster)),
            .block = dim3(static_cast<unsigned>(threads)),
            .shared = shared,
            .cluster = static_cast<unsigned>(plan.cluster)},
           kernel, k, plan, sums);
    fold(on, sums, places, k);
    return true;
  };
  if (block) return go.template operator()<kChunk / (kWarpSize * kLaneWidth<T>), true>();
  const int vecs = plan.order.vecs;
  if (vecs == 1) return go.template operator()<1, false>();
  if (vecs == 2) return go.template operator()<2, false>();
  if (vecs == 3) return go.template operator()<3, false>();
  if constexpr (sizeof(T) == 4) {
    if (vecs > 6) return go.template operator()<8, false>();
    if (vecs > 4) return go.template operator()<6, false>();
  }
  return go.template operator()<4, false>();
}

}  // namespace norma::norm_cuda
