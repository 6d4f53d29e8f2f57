#include "norma/core/cuda/allocator.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "norma/core/cuda/check.h"
#include "norma/core/cuda/graph.h"
#include "norma/core/error.h"
#include "norma/core/op.h"

namespace norma {
namespace detail {
namespace {

constexpr int64_t kMiB = 1 << 20;
constexpr int64_t kAlign = 512;
constexpr int64_t kSmall = kMiB;  // up to here blocks share segments of 2 MiB

/// A stretch of a segment, in use or free, with its neighbours in memory.
struct Block {
  std::byte* data;
  int64_t bytes;
  int64_t segment_bytes;  // of its whole segment
  BlockPool* pool;
  bool free = false;
  Block *before = nullptr, *after = nullptr;

  bool is_whole_segment() const { return !before && !after; }
};

struct BySize {
  using is_transparent = void;
  bool operator()(const Block* a, const Block* b) const {
    return a->bytes != b->bytes ? a->bytes < b->bytes : a->data < b->data;
  }
};

constexpr int64_t rounded(int64_t bytes) {
  return std::max<int64_t>(1, (bytes + kAlign - 1) / kAlign) * kAlign;
}
/// Small blocks are cut from 2 MiB, middling ones from 20 MiB, large ones have their own segment.
constexpr int64_t segment_for(int64_t bytes) {
  if (bytes <= kSmall) return 2 * kMiB;
  if (bytes < 10 * kMiB) return 20 * kMiB;
  return (bytes + 2 * kMiB - 1) / (2 * kMiB) * (2 * kMiB);
}

}  // namespace

/// Free blocks, small and large ones apart, so that small ones do not nibble at large ones.
struct BlockPool {
  Device device;
  std::set<Block*, BySize> small = {}, large = {};
  int64_t reserved = 0;

  std::set<Block*, BySize>& of(int64_t segment_bytes) {
    return segment_bytes == 2 * kMiB ? small : large;
  }
};

namespace {

struct DeviceMemory {
  BlockPool general;
  std::unordered_map<void*, Block*> in_use;
  MemoryStats stats;
};

struct Shared {
  std::mutex mutex;
  std::array<DeviceMemory, 16> devices;
};
/// Never destroyed: static tensors may be let go of after it would be.
Shared& shared() {
  static auto* memory = [] {
    auto* made = new Shared;
    for (size_t i = 0; i < made->devices.size(); ++i)
      made->devices[i].general.device = {Device::Kind::cuda, static_cast<uint8_t>(i)};
    return made;
  }();
  return *memory;
}
DeviceMemory& memory_of(Device device) { return shared().devices[device.index]; }

thread_local constinit BlockPool* thread_pool = nullptr;
thread_local constinit DeferredFrees* deferred_frees = nullptr;

void release_whole_segments(DeviceMemory& memory, BlockPool& pool) {
  for (auto* blocks : {&pool.small, &pool.large}) {
    for (auto it = blocks->begin(); it != blocks->end();) {
      Block* block = *it;
      if (!block->is_whole_segment()) {
        ++it;
        continue;
      }
      cudaFree(block->data);
      memory.stats.reserved -= block->bytes;
      pool.reserved -= block->bytes;
      it = blocks->erase(it);
      delete block;
    }
  }
}

[[noreturn]] void throw_out_of_memory(const DeviceMemory& memory, int64_t bytes, Device device) {
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  std::vector<int64_t> sizes;
  for (const auto& [data, block] : memory.in_use) sizes.push_back(block->bytes);
  std::sort(sizes.rbegin(), sizes.rend());
  std::string largest;
  for (size_t i = 0; i < std::min<size_t>(5, sizes.size()); ++i)
    largest += (i ? ", " : "") + format("{:.1f}", static_cast<double>(sizes[i]) / kMiB);
  throw CudaError(
      "{}: {:.1f} MiB are wanted on {}, but {:.1f} of {:.0f} MiB are free and {:.1f} in use (the "
      "largest tensors: {} MiB); make the batch or the model smaller, or checkpoint its layers",
      current_op(), static_cast<double>(bytes) / kMiB, device, static_cast<double>(free) / kMiB,
      static_cast<double>(total) / kMiB, static_cast<double>(memory.stats.allocated) / kMiB,
      largest.empty() ? "none" : largest);
}

Block* new_segment(DeviceMemory& memory, BlockPool& pool, int64_t bytes) {
  const int64_t segment = segment_for(bytes);
  void* data = nullptr;
  // Under capture the driver still may give memory, where the thread's mode is relaxed for it.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  cudaError_t status = cudaMalloc(&data, static_cast<size_t>(segment));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    cudaStreamSynchronize(stream_of(cuda_stream(pool.device)));
    release_whole_segments(memory, memory.general);
    status = cudaMalloc(&data, static_cast<size_t>(segment));
  }
  cudaThreadExchangeStreamCaptureMode(&mode);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw_out_of_memory(memory, bytes, pool.device);
  }
  check(status, "allocate memory");
  memory.stats.reserved += segment;
  ++memory.stats.system_allocations;
  pool.reserved += segment;
  return new Block{static_cast<std::byte*>(data), segment, segment, &pool};
}

/// Cuts what `block` has beyond `bytes` off, where that is worth a block of its own.
void split(BlockPool& pool, Block* block, int64_t bytes) {
  const int64_t rest = block->bytes - bytes;
  if (rest < (block->segment_bytes == 2 * kMiB ? kAlign : kSmall)) return;
  auto* tail = new Block{block->data + bytes, rest, block->segment_bytes, &pool};
  tail->free = true;
  tail->before = block;
  tail->after = block->after;
  if (tail->after) tail->after->before = tail;
  block->after = tail;
  block->bytes = bytes;
  pool.of(block->segment_bytes).insert(tail);
}

/// Makes `block` and the one after it one; neither is in the list of free blocks.
void merge_with_next(Block* block) {
  Block* next = block->after;
  block->bytes += next->bytes;
  block->after = next->after;
  if (block->after) block->after->before = block;
  delete next;
}

void move_to_general(BlockPool& pool, DeviceMemory& memory) {
  for (auto& [data, block] : memory.in_use)
    if (block->pool == &pool) block->pool = &memory.general;
  for (const bool small : {true, false}) {
    auto& from = small ? pool.small : pool.large;
    for (Block* block : from) {
      block->pool = &memory.general;
      (small ? memory.general.small : memory.general.large).insert(block);
    }
    from.clear();
  }
  memory.general.reserved += pool.reserved;
}

/// Pinned host memory: freed blocks wait for an event before they are used again.
struct Pinned {
  struct Waiting {
    void* data;
    cudaEvent_t done;
  };
  std::mutex mutex;
  std::unordered_map<void*, int64_t> sizes;
  std::multimap<int64_t, void*> free;
  std::vector<Waiting> waiting;

  void collect() {
    std::erase_if(waiting, [this](const Waiting& w) {
      if (cudaEventQuery(w.done) == cudaErrorNotReady) return false;
      cudaEventDestroy(w.done);
      free.emplace(sizes[w.data], w.data);
      return true;
    });
    cudaGetLastError();
  }
};
Pinned& pinned() {
  static auto* memory = new Pinned;
  return *memory;
}

}  // namespace

void* cuda_allocate(int64_t bytes, Device device) {
  cuda_stream(device);  // makes the device the current one
  const std::lock_guard lock(shared().mutex);
  DeviceMemory& memory = memory_of(device);
  BlockPool& pool = thread_pool && thread_pool->device == device ? *thread_pool : memory.general;
  const int64_t wanted = rounded(bytes);
  auto& blocks = pool.of(segment_for(wanted));
  Block probe{nullptr, wanted, 0, nullptr};
  const auto fits = blocks.lower_bound(&probe);
  Block* block;
  if (fits != blocks.end()) {
    block = *fits;
    blocks.erase(fits);
  } else {
    block = new_segment(memory, pool, wanted);
  }
  block->free = false;
  split(pool, block, wanted);
  memory.in_use[block->data] = block;
  memory.stats.allocated += block->bytes;
  memory.stats.peak = std::max(memory.stats.peak, memory.stats.allocated);
  return block->data;
}

DeferredFrees::Scope::Scope(DeferredFrees& frees)
    : before_(std::exchange(deferred_frees, &frees)) {}
DeferredFrees::Scope::~Scope() { deferred_frees = before_; }
void DeferredFrees::release() {
  for (const auto& [data, device] : std::exchange(blocks_, {})) cuda_deallocate(data, device);
}

void cuda_deallocate(void* data, Device device) {
  if (deferred_frees) {
    deferred_frees->blocks_.emplace_back(data, device);
    return;
  }
  const std::lock_guard lock(shared().mutex);
  DeviceMemory& memory = memory_of(device);
  const auto found = memory.in_use.find(data);
  Block* block = found->second;
  memory.in_use.erase(found);
  memory.stats.allocated -= block->bytes;
  BlockPool& pool = *block->pool;
  auto& blocks = pool.of(block->segment_bytes);
  if (block->after && block->after->free) {
    blocks.erase(block->after);
    merge_with_next(block);
  }
  if (block->before && block->before->free) {
    block = block->before;
    blocks.erase(block);
    merge_with_next(block);
  }
  block->free = true;
  blocks.insert(block);
}

void* cuda_allocate_pinned(int64_t bytes) {
  Pinned& memory = pinned();
  const std::lock_guard lock(memory.mutex);
  memory.collect();
  const int64_t wanted = rounded(bytes);
  const auto fits = memory.free.lower_bound(wanted);
  if (fits != memory.free.end() && fits->first <= 2 * wanted) {
    void* data = fits->second;
    memory.free.erase(fits);
    return data;
  }
  void* data = nullptr;
  check(cudaHostAlloc(&data, static_cast<size_t>(wanted), cudaHostAllocDefault),
        "allocate pinned memory");
  memory.sizes[data] = wanted;
  return data;
}

void cuda_deallocate_pinned(void* data) {
  Pinned& memory = pinned();
  const std::lock_guard lock(memory.mutex);
  cudaEvent_t done = nullptr;
  const cudaStream_t stream = stream_of(cuda_stream(cuda));
  if (cudaEventCreateWithFlags(&done, cudaEventDisableTiming) == cudaSuccess &&
      cudaEventRecord(done, stream) == cudaSuccess)
    memory.waiting.push_back({data, done});
  cudaGetLastError();  // a process that ends has no driver left to ask
}

MemoryPool::MemoryPool(Device device) : pool_(new BlockPool{.device = device}) {}
MemoryPool::~MemoryPool() {
  const std::lock_guard lock(shared().mutex);
  move_to_general(*pool_, memory_of(pool_->device));
}
int64_t MemoryPool::reserved() const { return pool_->reserved; }

MemoryPool::Scope::Scope(MemoryPool& pool)
    : before_(std::exchange(thread_pool, pool.pool_.get())) {}
MemoryPool::Scope::~Scope() { thread_pool = before_; }

void* exchange_pool(void* pool) {
  return std::exchange(thread_pool, static_cast<BlockPool*>(pool));
}

MemoryStats cuda_memory_stats(Device device) {
  const std::lock_guard lock(shared().mutex);
  return memory_of(device).stats;
}
void cuda_reset_peak(Device device) {
  const std::lock_guard lock(shared().mutex);
  MemoryStats& stats = memory_of(device).stats;
  stats.peak = stats.allocated;
}
void cuda_empty_cache(Device device) {
  synchronize(device);
  const std::lock_guard lock(shared().mutex);
  auto& memory = memory_of(device);
  release_whole_segments(memory, memory.general);
}

}  // namespace detail
}  // namespace norma
