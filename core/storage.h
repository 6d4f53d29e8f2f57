#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "norma/core/device.h"
#include "norma/core/ref.h"

namespace norma {

class StorageWatch;

namespace detail {
/// A change in place was given to its stream, of storage whose changes count.
void count_write();
uint64_t counted_writes();
}  // namespace detail

/// Reference-counted bytes on one device, shared by every view of them. The version counts
/// in-place changes, so that autograd can tell that what it saved is no longer what it was.
class Storage : public RefCounted {
 public:
  static Ref<Storage> allocate(int64_t bytes, Device device);
  /// On the processor, but a GPU copies from and to it by itself, without a wait.
  static Ref<Storage> allocate_pinned(int64_t bytes);

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  uint32_t version() const { return version_; }
  void bump_version() {
    ++version_;
    if (counts_writes_) detail::count_write();
  }
  /// From now on its changes count for kernels that read early (core/cuda/early.h); whether they
  /// did before.
  bool count_writes() { return std::exchange(counts_writes_, true); }
  /// The watch it was made under, while both live, and the how manyth there it was.
  StorageWatch* watch() const { return watch_.load(std::memory_order_relaxed); }
  uint32_t birth() const { return birth_; }

  static void destroy(Storage* storage);

 private:
  friend class StorageWatch;
  enum class Place : uint8_t { behind_header, on_device, pinned };
  Storage(std::byte* data, int64_t bytes, Device device, Place place)
      : data_(data), bytes_(bytes), device_(device), place_(place) {}
  std::byte* data_;
  int64_t bytes_;
  uint32_t version_ = 0;
  bool counts_writes_ = false;
  Device device_;
  Place place_;
  uint32_t birth_ = 0;
  std::atomic<StorageWatch*> watch_{nullptr};
};

/// Knows which of the storages that its thread made between begin() and end() still live: what a
/// captured call asks of its own (core/capture.h). A storage may end on another thread.
class StorageWatch {
 public:
  StorageWatch() = default;
  virtual ~StorageWatch();
  StorageWatch(const StorageWatch&) = delete;
  StorageWatch& operator=(const StorageWatch&) = delete;

  void begin();
  void end();
  static StorageWatch* exchange(StorageWatch* watch);  ///< the thread's current one for another
  bool made(const Storage& storage) const { return storage.watch() == this; }

 protected:
  /// In order of birth; null where it has ended.
  const std::vector<Storage*>& storages() const { return storages_; }

 private:
  friend class Storage;
  void add(Storage* storage);
  static void ended(Storage* storage);
  std::vector<Storage*> storages_;
};

}  // namespace norma
