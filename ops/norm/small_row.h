#pragma once

#include "norma/core/waiting_launch.h"
#include "norma/ops/norm/kernels.h"

namespace norma::norm_cuda {

/// Rows of floats in whole vectors, up to a vector a lane.
inline constexpr int kRowVec = 4, kMostRow = 128;

/// A product that may have a norm at its end: in the same launch, which also writes the product.
class RowsProduct : public detail::WaitingLaunch {
 public:
  /// The norm of the product, which is k.x. False, and nothing is done, where it does not suit.
  virtual bool start_with(const NormForwardArgs& k) = 0;
};

/// Whether RowForward (small_row.cuh) is for it.
bool suits_row(const NormForwardArgs& k);

}  // namespace norma::norm_cuda
