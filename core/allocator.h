#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <new>

#include "norma/core/device.h"

#if defined(__SANITIZE_ADDRESS__)
#define NORMA_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define NORMA_ASAN 1
#endif
#endif
#ifdef NORMA_ASAN
extern "C" void __asan_poison_memory_region(const volatile void*, size_t);
extern "C" void __asan_unpoison_memory_region(const volatile void*, size_t);
#endif

namespace norma {

/// Bytes of a device's memory that tensors use. Sizes count as rounded to their size class.
struct MemoryStats {
  int64_t allocated = 0;           ///< in use now
  int64_t reserved = 0;            ///< taken from the system: in use, or kept for reuse
  int64_t peak = 0;                ///< most ever in use, to within 64 KiB a thread
  int64_t system_allocations = 0;  ///< how often the system was asked; constant in steady state
};

MemoryStats memory_stats(Device device = cpu);
/// The most ever in use is counted anew from here on.
void reset_peak(Device device = cpu);
/// Gives cached blocks that are not in use back to the system; on the processor those of 4 MiB and
/// more, and those above 64 KiB together with the 32 MiB they share, once none of these is in use.
void empty_cache(Device device = cpu);

/// What allocate throws where the system has no memory left, even with the cache emptied.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(size_t bytes) noexcept;
  const char* what() const noexcept override { return text_.data(); }

 private:
  std::array<char, 96> text_{};
};

namespace detail {

inline constexpr size_t kSmallBytes = 64 << 10;
inline constexpr int kSmallClasses = 40;

/// Size classes: multiples of 64 bytes to 1 KiB, then four to each power of two.
constexpr int size_class(size_t bytes) {
  const size_t last = bytes - (bytes != 0);
  if (last < 1024) return static_cast<int>(last >> 6);
  const int power = static_cast<int>(std::bit_width(last)) - 1;
  return 16 + (power - 10) * 4 + static_cast<int>((last >> (power - 2)) & 3);
}

constexpr size_t class_bytes(int c) {
  if (c < 16) return static_cast<size_t>(c + 1) * 64;
  const int power = 10 + (c - 16) / 4;
  return (size_t{1} << power) + (static_cast<size_t>((c - 16) % 4 + 1) << (power - 2));
}
static_assert(class_bytes(kSmallClasses - 1) == kSmallBytes);
static_assert(size_class(kSmallBytes) == kSmallClasses - 1);

struct FreeBlock {
  FreeBlock* next;
};

struct FreeList {
  FreeBlock* head = nullptr;
  int count = 0;
};

/// A thread's small free blocks. Outlives its thread: the next new thread takes it over.
struct ThreadCache {
  std::array<FreeList, kSmallClasses> lists;
  std::atomic<int64_t> unreported{
      0};                     // bytes in use, not yet in the process's sum; own thread writes
  std::byte* bump = nullptr;  // the rest of the newest slab
  std::byte* bump_end = nullptr;
  ThreadCache* next = nullptr;  // in the list of all
  bool taken = true;
};

constexpr int64_t kReportBytes = 64 << 10;
/// Longest free list of a class, of a MiB or 32 blocks; beyond, half goes to all threads.
constexpr int list_limit(size_t bytes) {
  return bytes < (1 << 15) ? static_cast<int>((1 << 20) / bytes) : 32;
}

// A raw pointer, so that static tensors can die after the thread's other thread-locals.
extern constinit thread_local ThreadCache* thread_cache;

void* allocate_slow(size_t bytes);
void deallocate_slow(void* block, size_t bytes);
void report(ThreadCache& cache);
void spill(FreeList& list, int c);

inline void poison([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#ifdef NORMA_ASAN
  __asan_poison_memory_region(p, bytes);
#endif
}

inline void unpoison([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#ifdef NORMA_ASAN
  __asan_unpoison_memory_region(p, bytes);
#endif
}

inline void count_bytes(ThreadCache& cache, int64_t bytes) {
  const int64_t sum = cache.unreported.load(std::memory_order_relaxed) + bytes;
  cache.unreported.store(sum, std::memory_order_relaxed);
  if (sum > kReportBytes || sum < -kReportBytes) [[unlikely]]
    report(cache);
}

}  // namespace detail

/// Memory of at least `bytes` bytes (none counts as one), aligned to 64, its contents unspecified.
/// Blocks of up to 64 KiB come from the thread's own free lists, larger ones from a cache of the
/// process. Throws OutOfMemory.
inline void* allocate(size_t bytes) {
  detail::ThreadCache* cache = detail::thread_cache;
  if (bytes > detail::kSmallBytes || !cache) [[unlikely]]
    return detail::allocate_slow(bytes);
  const int c = detail::size_class(bytes);
  detail::FreeList& list = cache->lists[static_cast<size_t>(c)];
  detail::FreeBlock* block = list.head;
  if (!block) [[unlikely]]
    return detail::allocate_slow(bytes);
  detail::unpoison(block, bytes > sizeof(*block) ? bytes : sizeof(*block));
  list.head = block->next;
  --list.count;
  detail::count_bytes(*cache, static_cast<int64_t>(detail::class_bytes(c)));
  return block;
}

/// Takes back what allocate(bytes) gave, on any thread.
inline void deallocate(void* p, size_t bytes) {
  detail::ThreadCache* cache = detail::thread_cache;
  if (bytes > detail::kSmallBytes || !cache) [[unlikely]]
    return detail::deallocate_slow(p, bytes);
  const int c = detail::size_class(bytes);
  const size_t rounded = detail::class_bytes(c);
  detail::FreeList& list = cache->lists[static_cast<size_t>(c)];
  auto* block = static_cast<detail::FreeBlock*>(p);
  block->next = list.head;  // a second deallocate of the same block stops here under ASan
  list.head = block;
  detail::poison(p, rounded);
  detail::count_bytes(*cache, -static_cast<int64_t>(rounded));
  if (++list.count > detail::list_limit(rounded)) [[unlikely]]
    detail::spill(list, c);
}

}  // namespace norma
