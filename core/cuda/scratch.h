#pragma once

#include <cstdint>

#include "norma/core/cuda/allocator.h"
#include "norma/core/device.h"

namespace norma {

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
