#pragma once

#include <gtest/gtest.h>

#include <optional>

#include "norma/core/cuda/runtime.h"
#include "norma/core/device.h"

namespace norma::testing {

/// A fixture whose tests run with every tensor on the GPU; without one they are skipped. A
/// derived SetUp calls this one first and ends where IsSkipped().
template <class Base = ::testing::Test>
class OnGpu : public Base {
 protected:
  void SetUp() override {
    if (Device::best().is_cpu()) GTEST_SKIP() << "no GPU here";
    device_.emplace(cuda);
  }

 private:
  std::optional<DefaultDevice> device_;
};

/// The same for kernels that Hopper alone runs.
template <class Base = ::testing::Test>
class OnHopper : public OnGpu<Base> {
 protected:
  void SetUp() override {
    OnGpu<Base>::SetUp();
    if (this->IsSkipped()) return;
    if constexpr (kBuiltWithCuda)
      if (!detail::cuda_is_hopper(cuda)) GTEST_SKIP() << "for Hopper alone";
  }
};

}  // namespace norma::testing
