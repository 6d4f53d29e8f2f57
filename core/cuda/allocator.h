#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "norma/core/allocator.h"
#include "norma/core/cuda/scratch.h"
#include "norma/core/device.h"

namespace norma {

namespace detail {

// A caching allocator: blocks are split from and merged within segments of the driver's memory, and
// the smallest that fits is taken. All of a device's work goes to one stream, so a block may be
// used again at once; work on a second stream must be joined before what it reads is let go.

MemoryStats cuda_memory_stats(Device device);
void cuda_reset_peak(Device device);
void cuda_empty_cache(Device device);

/// What a thread deallocates while a Scope lives is kept until release(): a second stream may still
/// use it.
class DeferredFrees {
 public:
  class Scope {
   public:
    explicit Scope(DeferredFrees& frees);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    DeferredFrees* before_;
  };
  void release();

 private:
  friend void cuda_deallocate(void* block, Device device);
  std::vector<std::pair<void*, Device>> blocks_;
};

/// Host memory that the GPU copies from and to by itself.
void* cuda_allocate_pinned(int64_t bytes);
/// Takes it back; it is used again when the work given to the device so far is done.
void cuda_deallocate_pinned(void* block);

struct BlockPool;
/// Memory of its own for a captured graph: while a Scope of it lives, this thread allocates from
/// it, and what it held stays reserved for it until it goes.
class MemoryPool {
 public:
  explicit MemoryPool(Device device);
  ~MemoryPool();
  MemoryPool(const MemoryPool&) = delete;
  MemoryPool& operator=(const MemoryPool&) = delete;
  int64_t reserved() const;

  class Scope {
   public:
    explicit Scope(MemoryPool& pool);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    BlockPool* before_;
  };

 private:
  std::unique_ptr<BlockPool> pool_;
};

}  // namespace detail
}  // namespace norma
