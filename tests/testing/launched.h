#pragma once

#include <string>
#include <vector>

#include "norma/core/cuda/launches.h"

namespace norma::testing {

/// The kernels that `work` launches.
template <class F>
std::vector<std::string> launched(const F& work) {
  if constexpr (kBuiltWithCuda) {
    const detail::LaunchListener listener;
    work();
    return listener.kernels();
  }
  return {};
}

}  // namespace norma::testing
