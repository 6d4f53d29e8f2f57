#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "norma/core/device.h"

namespace norma::detail {

/// Times of a GPU's stream: marks set between its kernels, read later.
class CudaTimer {
 public:
  explicit CudaTimer(Device device);
  ~CudaTimer();
  CudaTimer(const CudaTimer&) = delete;
  CudaTimer& operator=(const CudaTimer&) = delete;

  /// Holds the stream up, so that the host gets ahead and the marks are not apart by its launches.
  void delay(double seconds);
  void mark();
  /// Seconds between each mark and the one before it. Waits for the device; the marks go.
  std::vector<double> take();

 private:
  struct Events;
  std::unique_ptr<Events> events_;
};

}  // namespace norma::detail
