#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "norma/core/cuda/check.h"
#include "norma/core/device.h"

namespace norma {

inline constexpr int kWarpSize = 32;

template <class A, class B>
constexpr auto ceil_div(A a, B b) {
  return (a + b - 1) / b;
}

struct LaunchShape {
  dim3 grid, block;
  size_t shared = 0;     ///< dynamic shared memory in bytes
  unsigned cluster = 1;  ///< blocks of a cluster, along x
  /// The kernel may start while the one before it in the stream still runs (programmatic dependent
  /// launch): it must call cudaGridDependencySynchronize() before it touches what that one writes.
  bool overlap = false;
};

/// The one place that launches: skips empty grids, checks, names the kernel in the error.
template <class... P, class... A>
void launch(const Cuda& on, const LaunchShape& shape, void (*kernel)(P...), const A&... args) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  const auto* address = reinterpret_cast<const void*>(kernel);
  // 48 KB need no permission, but what a kernel declares itself counts too.
  if (shape.shared > 32 << 10) detail::allow_shared_memory(address, shape.shared);
  if (shape.cluster > 8) detail::allow_large_clusters(address);
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared;
  config.stream = detail::stream_of(on);
  config.attrs = attributes;
  if (shape.cluster > 1) {
    cudaLaunchAttribute& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeClusterDimension;
    a.val.clusterDim.x = shape.cluster, a.val.clusterDim.y = a.val.clusterDim.z = 1;
  }
  if (shape.overlap) {
    cudaLaunchAttribute& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    a.val.programmaticStreamSerializationAllowed = 1;
  }
  detail::check_launch(cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...), address,
                       config.stream);
}

/// First in a kernel that overlaps: waits for what the kernel before it wrote, then lets the next
/// one take its place on the multiprocessors, where it waits in turn.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

/// Blocks of `block` threads for n items of work, at most `most` (for loops that stride the grid).
inline dim3 grid_for(int64_t n, int block, int64_t most = int64_t{1} << 30) {
  const int64_t blocks = ceil_div(n, int64_t{block});
  return dim3(static_cast<unsigned>(blocks < most ? blocks : most));
}

}  // namespace norma
