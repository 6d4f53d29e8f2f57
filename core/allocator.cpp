#include "norma/core/allocator.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "norma/core/cuda/allocator.h"

namespace norma {

OutOfMemory::OutOfMemory(size_t bytes) noexcept {
  std::snprintf(text_.data(), text_.size(),
                "allocate: the system must have %zu bytes, but has no such block left", bytes);
}

namespace detail {

constinit thread_local ThreadCache* thread_cache = nullptr;

namespace {

constexpr size_t kSlabBytes = 1 << 20;
constexpr size_t kHugePage = 2 << 20;
constexpr size_t kHugeBytes = 4 << 20;
constexpr size_t kRegionBytes = 32 << 20;
constexpr size_t kRegionGap = 64;  // between blocks, for ASan to find who writes beyond one
constexpr size_t kMostBytes = size_t{1} << 46;  // an address space has 47 bits
constexpr int kClasses = 16 + 36 * 4;

/// A growable stack outside the blocks: these are poisoned while free, and LeakSanitizer does not
/// follow pointers in poisoned memory.
struct Stack {
  void** items = nullptr;
  int count = 0, capacity = 0;

  bool push(void* p) {
    if (count == capacity) {
      const int more = std::max(16, capacity * 2);
      void* grown = std::realloc(items, static_cast<size_t>(more) * sizeof(void*));
      if (!grown) return false;
      items = static_cast<void**>(grown), capacity = more;
    }
    items[count++] = p;
    return true;
  }
  void* pop() { return count > 0 ? items[--count] : nullptr; }
};

/// Memory in huge pages that blocks of more than kSmallBytes and less than kHugeBytes are cut off,
/// one after another; given back when all of them are free. With small pages a toy's training step
/// waits for page tables (1.07 times as long on two threads).
struct Region {
  std::byte* begin;
  size_t used = 0;
  int blocks = 0, cached = 0;
  Region* next = nullptr;

  bool contains(const void* p) const { return p >= begin && p < begin + kRegionBytes; }
};

/// What all threads share. Constant-initialized and never destroyed.
struct Shared {
  std::mutex mutex;
  ThreadCache* caches = nullptr;
  Stack slabs;                // never given back; keeps them reachable
  Region* regions = nullptr;  // the newest first: blocks are cut off that
  Stack blocks[kClasses];     // free: small ones that threads have too many of, all large ones
  size_t cached_large = 0;
  size_t large_limit = 0;  // a quarter of the machine's memory
  int64_t reserved = 0, system_allocations = 0;
  std::atomic<int64_t> in_use{0}, peak{0};
};
constinit Shared shared;

pthread_key_t thread_end;

/// Makes the cache of a thread that ends available to the next one that begins.
void retire(void* cache) {
  thread_cache = nullptr;
  const std::lock_guard lock(shared.mutex);
  static_cast<ThreadCache*>(cache)->taken = false;
}

void prepare_process() {
  static const bool prepared = [] {
    pthread_key_create(&thread_end, retire);
    pthread_atfork([] { shared.mutex.lock(); }, [] { shared.mutex.unlock(); },
                   [] { shared.mutex.unlock(); });
    const long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    shared.large_limit = static_cast<size_t>(pages) * static_cast<size_t>(size) / 4;
    return true;
  }();
  static_cast<void>(prepared);
}

ThreadCache& own_cache() {
  if (thread_cache) return *thread_cache;
  prepare_process();
  {
    const std::lock_guard lock(shared.mutex);
    ThreadCache* cache = shared.caches;
    while (cache && cache->taken) cache = cache->next;
    if (!cache) {
      cache = new ThreadCache;
      cache->next = shared.caches;
      shared.caches = cache;
    }
    cache->taken = true;
    thread_cache = cache;
  }
  pthread_setspecific(thread_end, thread_cache);
  return *thread_cache;
}

void add_in_use(int64_t bytes) {
  const int64_t now = shared.in_use.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  int64_t peak = shared.peak.load(std::memory_order_relaxed);
  while (now > peak && !shared.peak.compare_exchange_weak(peak, now, std::memory_order_relaxed)) {
  }
}

constexpr int kHugeClass = size_class(kHugeBytes);

Region* region_of(const void* p) {
  Region* region = shared.regions;
  while (!region->contains(p)) region = region->next;
  return region;
}

/// Cached blocks that were cut off regions go where f(block) is true.
template <class F>
void remove_cached_if(const F& f) {
  for (int c = kSmallClasses; c < kHugeClass; ++c) {
    Stack& stack = shared.blocks[c];
    void** end = std::remove_if(stack.items, stack.items + stack.count, f);
    const int gone = static_cast<int>(stack.items + stack.count - end);
    stack.count -= gone;
    shared.reserved -= gone * static_cast<int64_t>(class_bytes(c));
    shared.cached_large -= static_cast<size_t>(gone) * class_bytes(c);
  }
}

void free_unused_regions() {
  for (Region* region = shared.regions; region; region = region->next) region->cached = 0;
  remove_cached_if([](void* p) { return ++region_of(p)->cached, false; });
  remove_cached_if([](void* p) { return region_of(p)->cached == region_of(p)->blocks; });
  for (Region** at = &shared.regions; Region* region = *at;) {
    if (region->cached == region->blocks) {
      *at = region->next;
      unpoison(region->begin, kRegionBytes);
      std::free(region->begin);
      delete region;
    } else {
      at = &region->next;
    }
  }
}

void empty_large_cache() {
  for (int c = kHugeClass; c < kClasses; ++c) {
    while (void* p = shared.blocks[c].pop()) {
      unpoison(p, class_bytes(c));
      std::free(p);
      shared.reserved -= static_cast<int64_t>(class_bytes(c));
      shared.cached_large -= class_bytes(c);
    }
  }
  free_unused_regions();
}

void* aligned(size_t alignment, size_t bytes) {
  void* p = nullptr;
  return posix_memalign(&p, alignment, bytes) == 0 ? p : nullptr;
}

void* from_system(size_t bytes) {
  const bool huge = bytes >= kHugeBytes;
  void* p = aligned(huge ? kHugePage : 64, bytes);
  if (!p) {
    empty_large_cache();
    p = aligned(huge ? kHugePage : 64, bytes);
  }
  if (!p) throw OutOfMemory(bytes);
  // Fewer page faults on the first touch; a system that refuses is as good.
  if (huge) madvise(p, bytes, MADV_HUGEPAGE);
  ++shared.system_allocations;
  return p;
}

void* from_region(size_t bytes) {
  if (!shared.regions || shared.regions->used + bytes + kRegionGap > kRegionBytes) {
    auto* begin = static_cast<std::byte*>(from_system(kRegionBytes));
    shared.regions = new Region{.begin = begin, .next = shared.regions};
  }
  Region& region = *shared.regions;
  std::byte* p = region.begin + region.used;
  poison(p + bytes, kRegionGap);
  region.used += bytes + kRegionGap;
  ++region.blocks;
  return p;
}

void* allocate_large(size_t bytes) {
  if (bytes > kMostBytes) throw OutOfMemory(bytes);
  prepare_process();
  const int c = size_class(bytes);
  const size_t rounded = class_bytes(c);
  void* p;
  {
    const std::lock_guard lock(shared.mutex);
    p = shared.blocks[c].pop();
    if (p)
      shared.cached_large -= rounded;
    else {
      p = c < kHugeClass ? from_region(rounded) : from_system(rounded);
      shared.reserved += static_cast<int64_t>(rounded);
    }
  }
  poison(p, rounded);
  unpoison(p, bytes);
  add_in_use(static_cast<int64_t>(rounded));
  return p;
}

void deallocate_large(void* p, size_t bytes) {
  const int c = size_class(bytes);
  const size_t rounded = class_bytes(c);
  poison(p, rounded);
  add_in_use(-static_cast<int64_t>(rounded));
  const std::lock_guard lock(shared.mutex);
  // Sizes that no longer occur would fill the cache for good; emptying it lets the others in.
  if (shared.cached_large + rounded > shared.large_limit) empty_large_cache();
  if (rounded <= shared.large_limit && shared.blocks[c].push(p)) {
    shared.cached_large += rounded;
    return;
  }
  unpoison(p, rounded);
  if (c < kHugeClass)
    --region_of(p)->blocks;
  else
    std::free(p);
  shared.reserved -= static_cast<int64_t>(rounded);
}

void push(FreeList& list, void* p, size_t bytes) {
  unpoison(p, sizeof(FreeBlock));
  list.head = new (p) FreeBlock{list.head};
  ++list.count;
  poison(p, bytes);
}

/// Takes some blocks that other threads had too many of.
void take_shared(FreeList& list, int c) {
  const std::lock_guard lock(shared.mutex);
  for (int i = list_limit(class_bytes(c)) / 2; i > 0; --i) {
    void* p = shared.blocks[c].pop();
    if (!p) return;
    push(list, p, class_bytes(c));
  }
}

/// Cuts a block off the slab. What remains of a slab too short for it becomes smaller blocks.
void carve(ThreadCache& cache, int c) {
  const size_t bytes = class_bytes(c);
  while (static_cast<size_t>(cache.bump_end - cache.bump) < bytes) {
    const auto rest = static_cast<size_t>(cache.bump_end - cache.bump);
    if (rest > 0) {
      int fits = size_class(rest);
      if (class_bytes(fits) > rest) --fits;
      push(cache.lists[static_cast<size_t>(fits)], cache.bump, class_bytes(fits));
      cache.bump += class_bytes(fits);
    } else {
      const std::lock_guard lock(shared.mutex);
      cache.bump = static_cast<std::byte*>(from_system(kSlabBytes));
      shared.reserved += static_cast<int64_t>(kSlabBytes);
      cache.bump_end = cache.bump + kSlabBytes;
      shared.slabs.push(cache.bump);
      poison(cache.bump, kSlabBytes);
    }
  }
  push(cache.lists[static_cast<size_t>(c)], cache.bump, bytes);
  cache.bump += bytes;
}

}  // namespace

void* allocate_slow(size_t bytes) {
  if (bytes > kSmallBytes) return allocate_large(bytes);
  ThreadCache& cache = own_cache();
  const int c = size_class(bytes);
  FreeList& list = cache.lists[static_cast<size_t>(c)];
  if (!list.head) take_shared(list, c);
  if (!list.head) carve(cache, c);
  return allocate(bytes);
}

void deallocate_slow(void* p, size_t bytes) {
  if (bytes > kSmallBytes) return deallocate_large(p, bytes);
  own_cache();
  deallocate(p, bytes);
}

void report(ThreadCache& cache) {
  add_in_use(cache.unreported.load(std::memory_order_relaxed));
  cache.unreported.store(0, std::memory_order_relaxed);
}

/// Leaves half of an overlong list to other threads: one that frees what another allocates would
/// otherwise hoard it.
void spill(FreeList& list, int c) {
  const std::lock_guard lock(shared.mutex);
  for (int keep = list.count / 2; list.count > keep; --list.count) {
    FreeBlock* block = list.head;
    if (!shared.blocks[c].push(block)) return;
    unpoison(block, sizeof(*block));
    list.head = block->next;
    poison(block, sizeof(*block));
  }
}

}  // namespace detail

MemoryStats memory_stats(Device device) {
  if constexpr (kBuiltWithCuda)
    if (device.is_cuda()) return detail::cuda_memory_stats(device);
  require_available(device);
  auto& shared = detail::shared;
  const std::lock_guard lock(shared.mutex);
  MemoryStats stats{.allocated = shared.in_use,
                    .reserved = shared.reserved,
                    .peak = shared.peak,
                    .system_allocations = shared.system_allocations};
  for (auto* cache = shared.caches; cache; cache = cache->next)
    stats.allocated += cache->unreported.load(std::memory_order_relaxed);
  stats.peak = std::max(stats.peak, stats.allocated);
  return stats;
}

void reset_peak(Device device) {
  if constexpr (kBuiltWithCuda)
    if (device.is_cuda()) return detail::cuda_reset_peak(device);
  require_available(device);
  const int64_t now = memory_stats().allocated;
  detail::shared.peak = now;
}

void empty_cache(Device device) {
  if constexpr (kBuiltWithCuda)
    if (device.is_cuda()) return detail::cuda_empty_cache(device);
  require_available(device);
  const std::lock_guard lock(detail::shared.mutex);
  detail::empty_large_cache();
}

}  // namespace norma
