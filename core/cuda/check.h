#pragma once

#include <cuda_runtime_api.h>

#include <string_view>

#include "norma/core/device.h"

namespace norma::detail {

/// Throws CudaError naming `what` was asked and what CUDA answered.
void check(cudaError_t status, std::string_view what);
/// After a launch: also takes a sticky error away, and names the kernel. Under NORMA_CUDA_SYNC=1 it
/// waits for the kernel, so that the one that failed is the one that is named.
void check_launch(cudaError_t status, const void* kernel, cudaStream_t stream);
/// Lets a kernel have more than 48 KiB of dynamic shared memory. Asks CUDA once a kernel and size.
void allow_shared_memory(const void* kernel, size_t bytes);
/// Lets a kernel have clusters of more than eight blocks. Asks CUDA once a kernel.
void allow_large_clusters(const void* kernel);

inline cudaStream_t stream_of(const Cuda& on) { return static_cast<cudaStream_t>(on.stream); }
const cudaDeviceProp& properties(Device device = cuda);

}  // namespace norma::detail
