#include <cuda_runtime.h>

#include "norma/core/cuda/check.h"
#include "norma/core/cuda/launch.cuh"
#include "norma/core/cuda/timer.h"

namespace norma::detail {
namespace {

__device__ uint64_t nanoseconds() {
  uint64_t t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return t;
}
__global__ void delay_kernel(uint64_t duration) {
  const uint64_t begin = nanoseconds();
  while (nanoseconds() - begin < duration) __nanosleep(1000);
}

}  // namespace

struct CudaTimer::Events {
  Device device;
  std::vector<cudaEvent_t> made = {};
  size_t used = 0;
};

CudaTimer::CudaTimer(Device device) : events_(new Events{.device = device}) {}
CudaTimer::~CudaTimer() {
  for (cudaEvent_t event : events_->made) cudaEventDestroy(event);
}

void CudaTimer::delay(double seconds) {
  launch(cuda_stream(events_->device), {.grid = dim3(1), .block = dim3(1)}, delay_kernel,
         static_cast<uint64_t>(seconds * 1e9));
}

void CudaTimer::mark() {
  Events& e = *events_;
  const cudaStream_t stream = stream_of(cuda_stream(e.device));
  if (e.used == e.made.size()) {
    e.made.emplace_back();
    check(cudaEventCreate(&e.made.back()), "make an event");
  }
  check(cudaEventRecord(e.made[e.used++], stream), "record an event");
}

std::vector<double> CudaTimer::take() {
  Events& e = *events_;
  synchronize(e.device);
  std::vector<double> times;
  for (size_t i = 1; i < e.used; ++i) {
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, e.made[i - 1], e.made[i]), "read an event");
    times.push_back(static_cast<double>(milliseconds) / 1e3);
  }
  e.used = 0;
  return times;
}

}  // namespace norma::detail
