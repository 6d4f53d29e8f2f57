#include "norma/core/storage.h"

#include <new>

#include "norma/core/allocator.h"
#include "norma/core/cuda/allocator.h"

namespace norma {
namespace {
// On the processor header and bytes are one block: one allocation a tensor, and the data stays
// 64-byte aligned.
constexpr size_t kHeader = 64;
static_assert(sizeof(Storage) <= kHeader);
}  // namespace

Ref<Storage> Storage::allocate(int64_t bytes, Device device) {
  if (device.is_cpu()) {
    auto* block = static_cast<std::byte*>(norma::allocate(kHeader + static_cast<size_t>(bytes)));
    return Ref<Storage>(new (block) Storage(block + kHeader, bytes, device, Place::behind_header));
  }
  require_available(device);
  void* data = nullptr;
  if constexpr (kBuiltWithCuda) data = detail::cuda_allocate(bytes, device);
  return Ref<Storage>(new (norma::allocate(kHeader))
                          Storage(static_cast<std::byte*>(data), bytes, device, Place::on_device));
}

Ref<Storage> Storage::allocate_pinned(int64_t bytes) {
  require_available(cuda);
  void* data = nullptr;
  if constexpr (kBuiltWithCuda) data = detail::cuda_allocate_pinned(bytes);
  return Ref<Storage>(new (norma::allocate(kHeader))
                          Storage(static_cast<std::byte*>(data), bytes, cpu, Place::pinned));
}

void Storage::destroy(Storage* storage) {
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
