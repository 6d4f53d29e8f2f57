#include "norma/core/cuda/arrivals.h"

#include <cuda_runtime_api.h>

#include <array>
#include <map>
#include <mutex>

#include "norma/core/cuda/check.h"

namespace norma::detail {
namespace {

constexpr int kCounters = 4096;  // that are allocated at a time

struct Counters {
  unsigned* next = nullptr;
  int left = 0;
  std::map<cudaStream_t, unsigned*> of_streams;

  unsigned* take() {
    if (left == 0) {
      // Under capture too, which goes on on a stream of its own.
      cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
      cudaThreadExchangeStreamCaptureMode(&mode);
      void* data = nullptr;
      cudaStream_t stream = nullptr;
      check(cudaMalloc(&data, kCounters * sizeof(unsigned)), "allocate counters");
      check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "make a stream");
      check(cudaMemsetAsync(data, 0, kCounters * sizeof(unsigned), stream), "clear counters");
      check(cudaStreamSynchronize(stream), "clear counters");
      check(cudaStreamDestroy(stream), "destroy a stream");
      cudaThreadExchangeStreamCaptureMode(&mode);
      next = static_cast<unsigned*>(data);
      left = kCounters;
    }
    --left;
    return next++;
  }
};

}  // namespace

unsigned* arrival_counter(const Cuda& on) {
  static std::mutex mutex;
  static auto* devices = new std::array<Counters, 16>;
  const cudaStream_t stream = stream_of(on);
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &capturing), "ask whether a stream is captured");
  const std::lock_guard lock(mutex);
  Counters& counters = (*devices)[on.device.index];
  if (capturing != cudaStreamCaptureStatusNone) return counters.take();
  unsigned*& own = counters.of_streams[stream];
  if (!own) own = counters.take();
  return own;
}

}  // namespace norma::detail
