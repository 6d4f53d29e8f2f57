#pragma once

#include "norma/ops/matmul/kernels.h"

namespace norma {

/// A product of half types on Hopper whose columns (up to 128) or terms (with up to 384 columns)
/// are no multiple of 8, which leaves cuBLASLt its oldest kernels: where all rows lie on 16 bytes.
/// False, and nothing is done, where a call is not of that kind.
bool multiply_odd(Cuda on, const MatmulArgs& k);

}  // namespace norma
