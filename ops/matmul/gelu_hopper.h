#pragma once

#include "norma/ops/matmul/kernels.h"

namespace norma {

/// A product of half types with GELU or its gradient behind it, on Hopper, for rows (x or dy) of
/// up to 384 elements. False, and nothing is done, where a call is not of that kind.
bool multiply_gelu(Cuda on, const MatmulArgs& k);

}  // namespace norma
