#pragma once

#include <cstdint>

#include "norma/core/device.h"

namespace norma {

namespace detail {
/// At least `bytes` bytes, aligned to 512. Where the driver has none left, first the cache goes
/// back to it; then CudaError names the op that asked, the bytes wanted and free, and the largest
/// blocks in use.
void* cuda_allocate(int64_t bytes, Device device);
void cuda_deallocate(void* block, Device device);
}  // namespace detail

/// Device memory for the time of one kernel call. What later work on the stream allocates may take
/// it as soon as this goes, since that work comes after.
template <class T>
class DeviceScratch {
 public:
  DeviceScratch(const Cuda& on, int64_t n)
      : device_(on.device),
        data_(static_cast<T*>(
            detail::cuda_allocate(n * static_cast<int64_t>(sizeof(T)), on.device))) {}
  ~DeviceScratch() { detail::cuda_deallocate(data_, device_); }
  DeviceScratch(const DeviceScratch&) = delete;
  DeviceScratch& operator=(const DeviceScratch&) = delete;
  T* data() const { return data_; }

 private:
  Device device_;
  T* data_;
};

}  // namespace norma
