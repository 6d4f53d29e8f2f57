#pragma once

#include <cstdint>
#include <string>

#include "norma/core/device.h"

namespace norma::detail {

// What core asks of CUDA, in plain C++: defined in builds with CUDA alone, called behind
// `if constexpr (kBuiltWithCuda)`.

int cuda_device_count();                      ///< 0 where there is no GPU or no driver
std::string cuda_device_name(Device device);  ///< "NVIDIA H100 80GB HBM3"
std::string cuda_devices_found();             ///< "it has 1 GPU", "no GPU was found"
void cuda_synchronize(Device device);

/// Copies dense bytes between two devices on the stream of the one that is a GPU. A copy to the
/// processor is waited for; one from pageable memory has read its source when it returns, one from
/// pinned memory has not: pinned storage is kept by its allocator until the copy is done.
void cuda_transfer(void* to, Device to_device, const void* from, Device from_device, int64_t bytes);

/// While one lives, this thread's work on its device goes to `stream` (a cudaStream_t).
class StreamScope {
 public:
  StreamScope(Device device, void* stream);
  ~StreamScope();
  StreamScope(const StreamScope&) = delete;
  StreamScope& operator=(const StreamScope&) = delete;

 private:
  Device device_;
  void* before_;
};

/// Multiprocessors of the device: what persistent grids are sized by.
int cuda_multiprocessors(Device device);
bool cuda_is_hopper(Device device);  ///< compute capability 9
/// Bytes of shared memory that a block can have.
int64_t cuda_shared_memory(Device device);

}  // namespace norma::detail
