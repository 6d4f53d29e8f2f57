#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "norma/core/device.h"

namespace norma::detail {

/// What a kernel found wrong in its data, an index outside its table say: the host cannot look
/// without waiting, so the first finding is kept and thrown, as ValueError, where the host next
/// waits for the device (synchronize, a copy to the processor). The kernel goes on with index 0.
struct Fault {
  const char* text = nullptr;  ///< the error's text, with a place for each value; host memory
  int64_t values[4] = {};
};
struct FaultSlot {
  unsigned* taken = nullptr;   // on the device
  Fault* fault = nullptr;      // pinned host memory
  const char* text = nullptr;  // the host's own: a literal in a kernel lies where it cannot read
#ifdef __CUDACC__
  __device__ void report(int64_t a, int64_t b = 0, int64_t c = 0, int64_t d = 0) const {
    if (atomicExch(taken, 1u) != 0) return;
    fault->values[0] = a, fault->values[1] = b, fault->values[2] = c, fault->values[3] = d;
    __threadfence_system();
    *const_cast<const char* volatile*>(&fault->text) = text;
  }
#endif
};
/// Of the device that is current. `text` is a literal.
FaultSlot fault_slot(const char* text);
/// After a wait: throws what a kernel reported since the last time.
void throw_fault();

}  // namespace norma::detail
