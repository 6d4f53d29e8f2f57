#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "norma/core/cuda/packed.cuh"
#include "norma/core/cuda/reduce.cuh"
#include "norma/core/cuda/scratch.h"
#include "norma/ops/optim/kernels.h"

namespace norma {
namespace {

constexpr int kThreads = 256, kWidth = 4;
// Elements a block: of a small model fewer, so that it fills a GPU. By the sizes alone, since the
// gradients' norm adds up blocks.
constexpr int kSmallChunk = kWidth * kThreads, kLargeChunk = 4 * kSmallChunk;
constexpr int64_t kSmallModel = int64_t{1} << 21;

// A whole model in one launch: the table of its tensors is the kernel's parameter, of which CUDA
// takes 32,764 bytes, so that nothing has to be copied to the device and a captured graph holds it.

template <class Entry, int kMost>
struct Table {
  Entry entries[kMost];
  int first_block[kMost + 1];
  int count = 0, chunk = kLargeChunk;

  /// The entry of this block, by bisection.
  __device__ int find(int block) const {
    int low = 0, high = count - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (first_block[middle] <= block)
        low = middle;
      else
        high = middle - 1;
    }
    return low;
  }
};

/// Calls f(table, blocks) for `entries` in tables of a few sizes; n(entry) is its length.
template <class Entry, class F>
void for_tables(const std::vector<Entry>& entries, int chunk, const F& f) {
  constexpr int kSmall = 32, kLarge = static_cast<int>(32000 / (sizeof(Entry) + sizeof(int)));
  const auto go = [&]<int kMost>(size_t first, size_t last) {
    auto table = std::make_unique<Table<Entry, kMost>>();
    table->chunk = chunk;
    int blocks = 0;
    for (size_t i = first; i < last; ++i) {
      table->entries[table->count] = entries[i];
      table->first_block[table->count++] = blocks;
      blocks += static_cast<int>(ceil_div(entries[i].n, int64_t{chunk}));
    }
    table->first_block[table->count] = blocks;
    f(*table, blocks);
  };
  for (size_t first = 0; first < entries.size(); first += kLarge) {
    const size_t last = std::min(entries.size(), first + kLarge);
    if (last - first <= kSmall)
      go.template operator()<kSmall>(first, last);
    else
      go.template operator()<kLarge>(first, last);
  }
}

int chunk_for(int64_t elements) { return elements < kSmallModel ? kSmallChunk : kLargeChunk; }
/// Twice that for AdamW's blocks, so that those of 0.8 M parameters are all on the GPU before the
/// gradients' norm ends, with their powers ready (a toy step: 0.266 for 0.267 ms).
int adamw_chunk_for(int64_t elements) { return std::min(2 * chunk_for(elements), kLargeChunk); }

/// A block's part of a tensor of n elements: f(first element, how many) for each packet of a
/// thread.
template <int kPacket = kWidth, class F>
__device__ __forceinline__ void for_chunk(int64_t n, int block, int chunk, const F& f) {
  const int64_t begin = int64_t{block} * chunk, end = min(n, begin + chunk);
#pragma unroll 4
  for (int i = 0; i < chunk; i += kThreads * kPacket) {
    const int64_t at = begin + i + threadIdx.x * kPacket;
    if (at < end) f(at, static_cast<int>(min(int64_t{kPacket}, end - at)));
  }
}
template <int kWidth, class T>
__device__ __forceinline__ Packed<T, kWidth> read(const T* p, int n) {
  return n == kWidth && is_aligned<kWidth>(p) ? load<kWidth>(p) : load_some<kWidth>(p, n, T{});
}
template <int kWidth, class T>
__device__ __forceinline__ void write(T* p, const Packed<T, kWidth>& r, int n) {
  n == kWidth&& is_aligned<kWidth>(p) ? store(p, r) : store_some(p, r, n);
}

/// Values beside the ones they are rounded from.
template <class T, int kWidth>
__device__ __forceinline__ void write_rounded(void* to, bool to_bfloat16, int64_t at,
                                              const Packed<T, kWidth>& values, int n) {
  if (!to) return;
  const auto put = [&]<class R>(R* p) {
    Packed<R, kWidth> r;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) r[i] = convert<R>(values[i]);
    write(p + at, r, n);
  };
  to_bfloat16 ? put(static_cast<BFloat16*>(to)) : put(static_cast<Float16*>(to));
}

struct GradEntry {
  const void* grad;
  int64_t n;
};

/// Blocks of a launch at most: each goes through several chunks, since its end, a fence and an
/// arrival, takes longer than a chunk. A constant: the blocks' sums are added up.
constexpr int kMostNormBlocks = 1056;
/// Of a small model: AdamW's blocks, which raise numbers to a power, find room beside them.
constexpr int kMostSmallNormBlocks = 264;

/// Σ g² of each block, then, by the block that comes last, of all of them, in one order.
///   bytes  one read of each gradient
template <class T, int kMost>
__global__ void __launch_bounds__(kThreads)
    grad_norm_kernel(const __grid_constant__ Table<GradEntry, kMost> table, double* partials,
                     int first, int all, GradNormArgs::Decide decide, GradientState* state,
                     float* norm) {
  using Acc = stats_t<T>;
  constexpr int kPackets = kLargeChunk / kSmallChunk;  // of a thread, in a large chunk
  __shared__ double slots[kThreads / kWarpSize];
  __shared__ bool last;
  const int chunks = table.first_block[table.count], step = static_cast<int>(gridDim.x);
  struct Packets {
    Packed<T, kWidth> v[kPackets];  // zeros where there is nothing
  };
  const auto fetch = [&](int chunk, Packets& to) {
    const int e = table.find(chunk);
    const GradEntry& entry = table.entries[e];
    const int64_t begin = int64_t{chunk - table.first_block[e]} * table.chunk,
                  end = min(entry.n, begin + table.chunk), at = begin + threadIdx.x * kWidth;
    const T* g = static_cast<const T*>(entry.grad) + at;
    if (end - begin == kLargeChunk && is_aligned<kWidth>(g)) {
#pragma unroll
      for (int i = 0; i < kPackets; ++i) to.v[i] = load<kWidth>(g + i * kSmallChunk);
    } else {
#pragma unroll
      for (int i = 0; i < kPackets; ++i) {
        const int64_t left = end - at - i * kSmallChunk;
        const int n = static_cast<int>(max(int64_t{0}, min(int64_t{kWidth}, left)));
        to.v[i] = read<kWidth>(g + i * kSmallChunk, n);
      }
    }
  };
  wait_for_previous_kernel();
  double mine = 0;
  Packets now, next;
  fetch(static_cast<int>(blockIdx.x), now);
  for (int chunk = static_cast<int>(blockIdx.x); chunk < chunks; chunk += step) {
    if (chunk + step < chunks) fetch(chunk + step, next);  // on its way while these are added
    Acc sum = 0;
#pragma unroll
    for (const Packed<T, kWidth>& packet : now.v)
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sum += square(convert<Acc>(packet[i]));
    mine += static_cast<double>(sum);
    now = next;
  }
  const double block = block_sum<kThreads>(mine, slots);
  if (threadIdx.x == 0) {
    partials[first + blockIdx.x] = block;
    __threadfence();
    last = atomicAdd(&state->arrived, 1u) == static_cast<unsigned>(all - 1);
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  double total = 0;
  for (int i = threadIdx.x; i < all; i += kThreads) total += __ldcg(partials + i);
  __syncthreads();
  total = block_sum<kThreads>(total, slots);
  if (threadIdx.x != 0) return;
  state->arrived = 0;
  decide_step(*state, ::sqrt(total), decide.limit, decide.scaled);
  *norm = static_cast<float>(state->norm);
}

struct AdamwEntry {
  void* p;
  const void* grad;
  void *m, *v, *rounded;
  int64_t n;
  double weight_decay;
  bool to_bfloat16;
};
struct AdamwNumbers {
  StepNumbers numbers;
  const StepNumbers* on_device;
  double beta1, beta2, eps;
  const GradientState* state;
};

/// The same formulas as on the CPU, in the same order.
///   bytes  4 reads and 3 writes a parameter: 28 in float32
template <class T, int kMost>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(const __grid_constant__ Table<AdamwEntry, kMost> table, AdamwNumbers k) {
  using Acc = stats_t<T>;
  __shared__ Acc shared[3];
  const int e = table.find(static_cast<int>(blockIdx.x));
  const AdamwEntry& entry = table.entries[e];
  const auto prepare = [&](double skipped) {
    if (threadIdx.x != 0 && threadIdx.x != kWarpSize) return;  // a power takes long: one warp each
    const StepNumbers numbers = k.on_device ? *k.on_device : k.numbers;
    const bool first = threadIdx.x == 0;
    const double step = static_cast<double>(numbers.step) - skipped;
    const double rest = 1 - ::pow(first ? k.beta1 : k.beta2, step);
    shared[first ? 0 : 1] = static_cast<Acc>(first ? numbers.lr / rest : 1 / ::sqrt(rest));
    if (first) shared[2] = static_cast<Acc>(1 - numbers.lr * entry.weight_decay);
  };
  prepare(0);  // while the kernel before still runs, which decides whether steps were skipped
  wait_for_previous_kernel();
  if (k.state && k.state->skip) return;
  if (k.state && k.state->skipped > 0) prepare(k.state->skipped);
  __syncthreads();
  const Acc size = shared[0], correction = shared[1], keep = shared[2];
  const Acc b1 = static_cast<Acc>(k.beta1), b2 = static_cast<Acc>(k.beta2);
  const Acc eps = static_cast<Acc>(k.eps);
  const Acc factor = k.state ? static_cast<Acc>(k.state->factor) : Acc(1);
  T* ps = static_cast<T*>(entry.p);
  const T* gs = static_cast<const T*>(entry.grad);
  Acc *ms = static_cast<Acc*>(entry.m), *vs = static_cast<Acc*>(entry.v);
  for_chunk(entry.n, static_cast<int>(blockIdx.x) - table.first_block[e], table.chunk,
            [&](int64_t at, int n) {
              auto p = read<kWidth>(ps + at, n);
              const auto g = read<kWidth>(gs + at, n);
              auto m = read<kWidth>(ms + at, n), v = read<kWidth>(vs + at, n);
#pragma unroll
              for (int i = 0; i < kWidth; ++i) {
                const Acc d = convert<Acc>(g[i]) * factor;
                m[i] = b1 * m[i] + (1 - b1) * d;
                v[i] = b2 * v[i] + (1 - b2) * d * d;
                const Acc change = size * m[i] / (::sqrt(v[i]) * correction + eps);
                p[i] = convert<T>(convert<Acc>(p[i]) * keep - change);
              }
              write(ps + at, p, n);
              write(ms + at, m, n);
              write(vs + at, v, n);
              write_rounded(entry.rounded, entry.to_bfloat16, at, p, n);
            });
}

struct SgdEntry {
  void* p;
  const void* grad;
  void *velocity, *rounded;
  int64_t n;
  double weight_decay;
  bool to_bfloat16;
};
struct SgdNumbers {
  StepNumbers numbers;
  const StepNumbers* on_device;
  double momentum;
  bool nesterov;
  const GradientState* state;
};

template <class T, int kMost>
__global__ void __launch_bounds__(kThreads)
    sgd_kernel(const __grid_constant__ Table<SgdEntry, kMost> table, SgdNumbers k) {
  using Acc = stats_t<T>;
  const int e = table.find(static_cast<int>(blockIdx.x));
  const SgdEntry& entry = table.entries[e];
  if (k.state && k.state->skip) return;
  const double rate = k.on_device ? k.on_device->lr : k.numbers.lr;
  const Acc lr = static_cast<Acc>(rate), momentum = static_cast<Acc>(k.momentum);
  const Acc keep = static_cast<Acc>(1 - rate * entry.weight_decay);
  const Acc factor = k.state ? static_cast<Acc>(k.state->factor) : Acc(1);
  T* p = static_cast<T*>(entry.p);
  const T* g = static_cast<const T*>(entry.grad);
  Acc* velocity = static_cast<Acc*>(entry.velocity);
  for_chunk<1>(entry.n, static_cast<int>(blockIdx.x) - table.first_block[e], table.chunk,
               [&](int64_t i, int) {
                 Acc d = convert<Acc>(g[i]) * factor;
                 if (velocity) {
                   const Acc u = momentum * velocity[i] + d;
                   velocity[i] = u;
                   d = k.nesterov ? d + momentum * u : u;
                 }
                 Packed<T, 1> result;
                 result[0] = convert<T>(convert<Acc>(p[i]) * keep - lr * d);
                 p[i] = result[0];
                 write_rounded(entry.rounded, entry.to_bfloat16, i, result, 1);
               });
}

struct ScaleEntry {
  void* x;
  int64_t n;
};
template <class T, int kMost>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(const __grid_constant__ Table<ScaleEntry, kMost> table,
                 const GradientState* state) {
  using Acc = stats_t<T>;
  const Acc factor = static_cast<Acc>(state->factor);
  if (factor == 1) return;
  const int e = table.find(static_cast<int>(blockIdx.x));
  T* x = static_cast<T*>(table.entries[e].x);
  for_chunk<1>(table.entries[e].n, static_cast<int>(blockIdx.x) - table.first_block[e], table.chunk,
               [&](int64_t i, int) { x[i] = convert<T>(convert<Acc>(x[i]) * factor); });
}

constexpr DType kFloating[] = {float32, float64, bfloat16, float16};

/// The entries of one dtype, with something in them.
template <class Entry, class Slots, class DTypeOf, class Make>
std::vector<Entry> entries_of(DType dtype, const Slots& slots, const DTypeOf& dtype_of_slot,
                              const Make& make) {
  std::vector<Entry> entries;
  for (const auto& slot : slots)
    if (dtype_of_slot(slot) == dtype)
      if (const Entry entry = make(slot); entry.n > 0) entries.push_back(entry);
  return entries;
}

}  // namespace

void run(Cuda on, const GradNormArgs& k) {
  const auto entries = [&](DType dtype) {
    return entries_of<GradEntry>(
        dtype, k.grads, [](const ConstVec& g) { return g.dtype; },
        [](const ConstVec& g) {
          return GradEntry{g.data, g.n};
        });
  };
  int64_t elements = 0;
  for (const ConstVec& g : k.grads) elements += g.n;
  const int chunk = chunk_for(elements);
  const int most = chunk == kSmallChunk ? kMostSmallNormBlocks : kMostNormBlocks;
  /// f<T>(table, blocks)
  const auto for_launches = [&](const auto& f) {
    for (DType dtype : kFloating)
      visit_floating(dtype, [&]<class T>() {
        for_tables(entries(dtype), chunk, [&](const auto& table, int chunks) {
          f.template operator()<T>(table, std::min(chunks, most));
        });
      });
  };
  int all = 0;
  for_launches([&]<class T>(const auto&, int blocks) { all += blocks; });
  if (all == 0) {
    detail::check(cudaMemsetAsync(k.norm, 0, sizeof(float), detail::stream_of(on)),
                  "fill with zeros");
    return;
  }
  const DeviceScratch<double> partials(on, all);
  int first = 0;
  for_launches([&]<class T, int kMost>(const Table<GradEntry, kMost>& table, int blocks) {
    launch(
        on, {.grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kThreads), .overlap = true},
        grad_norm_kernel<T, kMost>, table, partials.data(), first, all, k.decide, k.state, k.norm);
    first += blocks;
  });
}

void run(Cuda on, const AdamwArgs& k) {
  const AdamwNumbers numbers{k.numbers, k.on_device, k.beta1, k.beta2, k.eps, k.state};
  int64_t elements = 0;
  for (const AdamwSlot& s : k.slots) elements += s.p.n;
  const int chunk = adamw_chunk_for(elements);
  for (DType dtype : kFloating)
    visit_floating(dtype, [&]<class T>() {
      const auto entries = entries_of<AdamwEntry>(
          dtype, k.slots, [](const AdamwSlot& s) { return s.p.dtype; },
          [](const AdamwSlot& s) {
            return AdamwEntry{
                s.p.data,       s.grad.data, s.m.data,       s.v.data,
                s.rounded.data, s.p.n,       s.weight_decay, s.rounded.dtype == bfloat16};
          });
      for_tables(entries, chunk, [&]<int kMost>(const Table<AdamwEntry, kMost>& table, int blocks) {
        launch(
            on,
            {.grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kThreads), .overlap = true},
            adamw_kernel<T, kMost>, table, numbers);
      });
    });
}

void run(Cuda on, const SgdArgs& k) {
  const SgdNumbers numbers{k.numbers, k.on_device, k.momentum, k.nesterov, k.state};
  for (DType dtype : kFloating)
    visit_floating(dtype, [&]<class T>() {
      const auto entries = entries_of<SgdEntry>(
          dtype, k.slots, [](const SgdSlot& s) { return s.p.dtype; },
          [](const SgdSlot& s) {
            return SgdEntry{s.p.data,
                            s.grad.data,
                            s.velocity.data,
                            s.rounded.data,
                            s.p.n,
                            s.weight_decay,
                            s.rounded.dtype == bfloat16};
          });
      for_tables(
          entries, kLargeChunk, [&]<int kMost>(const Table<SgdEntry, kMost>& table, int blocks) {
            launch(on, {.grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kThreads)},
                   sgd_kernel<T, kMost>, table, numbers);
          });
    });
}

void run(Cuda on, const ScaleArgs& k) {
  for (DType dtype : kFloating)
    visit_floating(dtype, [&]<class T>() {
      const auto entries = entries_of<ScaleEntry>(
          dtype, k.xs, [](const Vec& x) { return x.dtype; },
          [](const Vec& x) {
            return ScaleEntry{x.data, x.n};
          });
      for_tables(
          entries, kLargeChunk, [&]<int kMost>(const Table<ScaleEntry, kMost>& table, int blocks) {
            launch(on, {.grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kThreads)},
                   scale_kernel<T, kMost>, table, k.state);
          });
    });
}

}  // namespace norma
