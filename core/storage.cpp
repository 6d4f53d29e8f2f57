#include "norma/core/storage.h"

#include <mutex>
#include <new>
#include <utility>

#include "norma/core/allocator.h"
#include "norma/core/cuda/allocator.h"

namespace norma {
namespace {
// On the processor header and bytes are one block: one allocation a tensor, and the data stays
// 64-byte aligned.
constexpr size_t kHeader = 64;
static_assert(sizeof(Storage) <= kHeader);

thread_local constinit StorageWatch* current_watch = nullptr;
constinit std::atomic<uint64_t> writes = 1;

// A storage may end on one thread while its watch ends on another. Never destroyed: static tensors
// die late.
std::mutex& watch_mutex() {
  static auto* mutex = new std::mutex;
  return *mutex;
}
}  // namespace

void detail::count_write() { writes.fetch_add(1, std::memory_order_relaxed); }
uint64_t detail::counted_writes() { return writes.load(std::memory_order_relaxed); }

void StorageWatch::begin() { current_watch = this; }
void StorageWatch::end() { current_watch = nullptr; }
StorageWatch* StorageWatch::exchange(StorageWatch* watch) {
  return std::exchange(current_watch, watch);
}
StorageWatch::~StorageWatch() {
  const std::lock_guard lock(watch_mutex());
  for (Storage* storage : storages_)
    if (storage) storage->watch_.store(nullptr, std::memory_order_relaxed);
}
void StorageWatch::add(Storage* storage) {
  const std::lock_guard lock(watch_mutex());
  storage->birth_ = static_cast<uint32_t>(storages_.size());
  storage->watch_.store(this, std::memory_order_relaxed);
  storages_.push_back(storage);
}
void StorageWatch::ended(Storage* storage) {
  const std::lock_guard lock(watch_mutex());
  if (StorageWatch* watch = storage->watch()) watch->storages_[storage->birth_] = nullptr;
}

Ref<Storage> Storage::allocate(int64_t bytes, Device device) {
  Ref<Storage> storage;
  if (device.is_cpu()) {
    auto* block = static_cast<std::byte*>(norma::allocate(kHeader + static_cast<size_t>(bytes)));
    storage = Ref<Storage>::first(
        new (block) Storage(block + kHeader, bytes, device, Place::behind_header));
  } else {
    require_available(device);
    void* data = nullptr;
    if constexpr (kBuiltWithCuda) data = detail::cuda_allocate(bytes, device);
    storage = Ref<Storage>::first(new (norma::allocate(kHeader)) Storage(
        static_cast<std::byte*>(data), bytes, device, Place::on_device));
  }
  if (current_watch) [[unlikely]]
    current_watch->add(storage.get());
  return storage;
}

Ref<Storage> Storage::allocate_pinned(int64_t bytes) {
  require_available(cuda);
  void* data = nullptr;
  if constexpr (kBuiltWithCuda) data = detail::cuda_allocate_pinned(bytes);
  return Ref<Storage>::first(new (norma::allocate(kHeader))
                                 Storage(static_cast<std::byte*>(data), bytes, cpu, Place::pinned));
}

void Storage::destroy(Storage* storage) {
  if (storage->watch()) [[unlikely]]
    StorageWatch::ended(storage);
  size_t bytes = kHeader;
  if (storage->place_ == Place::behind_header) {
    bytes += static_cast<size_t>(storage->bytes_);
  } else if constexpr (kBuiltWithCuda) {
    if (storage->place_ == Place::on_device)
      detail::cuda_deallocate(storage->data_, storage->device_);
    else
      detail::cuda_deallocate_pinned(storage->data_);
  }
  storage->~Storage();
  norma::deallocate(storage, bytes);
}

}  // namespace norma
