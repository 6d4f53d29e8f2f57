#pragma once

#include "norma/core/device.h"

namespace norma::detail {

/// A counter in device memory by which a kernel's blocks find out who comes last: 0 when the kernel
/// starts, and 0 again when it ends, which the kernel sees to. Each stream has one, since its
/// kernels run one after another; under capture each launch gets its own for good, four bytes,
/// since the branches of a graph run side by side.
unsigned* arrival_counter(const Cuda& on);

}  // namespace norma::detail
