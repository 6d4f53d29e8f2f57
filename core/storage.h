#pragma once

#include <cstddef>
#include <cstdint>

#include "norma/core/device.h"
#include "norma/core/ref.h"

namespace norma {

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
  void bump_version() { ++version_; }

  static void destroy(Storage* storage);

 private:
  enum class Place : uint8_t { behind_header, on_device, pinned };
  Storage(std::byte* data, int64_t bytes, Device device, Place place)
      : data_(data), bytes_(bytes), device_(device), place_(place) {}
  std::byte* data_;
  int64_t bytes_;
  uint32_t version_ = 0;
  Device device_;
  Place place_;
};

}  // namespace norma
