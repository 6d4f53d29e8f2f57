#pragma once

#include "norma/core/device.h"
#include "norma/core/error.h"

namespace norma {

/// Runs the kernel described by `args` where `device` says: run(Cpu, args) or run(Cuda, args). In a
/// build without CUDA the second call is discarded, so that ops need no stub for it.
template <class Args>
void dispatch(Device device, const Args& args) {
  if (device.is_cpu()) {
    run(Cpu{}, args);
    return;
  }
  if constexpr (kBuiltWithCuda)
    run(cuda_stream(device), args);
  else
    require_available(device);
}

}  // namespace norma
