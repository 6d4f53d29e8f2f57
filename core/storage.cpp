#include "norma/core/storage.h"

#include <new>

#include "norma/core/allocator.h"

namespace norma {
namespace {
// Header and bytes in one block: one allocation a tensor, and the data stays 64-byte aligned.
constexpr size_t kHeader = 64;
static_assert(sizeof(Storage) <= kHeader);
}  // namespace

Ref<Storage> Storage::allocate(int64_t bytes, Device device) {
  if (!device.is_cpu()) require_available(device);
  auto* block = static_cast<std::byte*>(norma::allocate(kHeader + static_cast<size_t>(bytes)));
  return Ref<Storage>(new (block) Storage(block + kHeader, bytes, device));
}

void Storage::destroy(Storage* storage) {
  const size_t bytes = kHeader + static_cast<size_t>(storage->bytes_);
  storage->~Storage();
  norma::deallocate(storage, bytes);
}

}  // namespace norma
