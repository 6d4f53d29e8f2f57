#include "norma/core/cuda/side_stream.h"

#include <cuda_runtime_api.h>

#include <array>
#include <utility>

#include "norma/core/cuda/allocator.h"
#include "norma/core/cuda/check.h"
#include "norma/core/cuda/runtime.h"

namespace norma::detail {

constinit thread_local bool side_pending = false;

namespace {

/// A thread's second stream of a device.
struct Side {
  Device device;
  cudaStream_t stream = nullptr;
  cudaEvent_t begun = nullptr, done = nullptr;
  std::vector<Tensor> reads = {};
  std::vector<const Storage*> results = {};
  DeferredFrees frees = {};
};

/// Never destroyed, like the device's main stream.
Side& side_of(Device device) {
  thread_local constinit std::array<Side*, 16> sides{};
  Side*& side = sides[device.index];
  if (!side) {
    side = new Side{.device = device};
    check(cudaStreamCreateWithFlags(&side->stream, cudaStreamNonBlocking), "make a stream");
    for (cudaEvent_t* event : {&side->begun, &side->done})
      check(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "make an event");
  }
  return *side;
}

thread_local constinit Side* pending = nullptr;

}  // namespace

std::vector<Tensor> run_beside(Device device, std::vector<Tensor> reads,
                               const std::function<std::vector<Tensor>()>& work) {
  if (!sweep_joins()) return work();
  join_side();
  const cudaStream_t stream = stream_of(cuda_stream(device));
  Side& side = side_of(device);
  check(cudaEventRecord(side.begun, stream), "begin beside");
  check(cudaStreamWaitEvent(side.stream, side.begun, 0), "begin beside");
  std::vector<Tensor> results;
  {
    const StreamScope beside(device, side.stream);
    const DeferredFrees::Scope until_join(side.frees);
    results = work();
  }
  check(cudaEventRecord(side.done, side.stream), "end beside");
  pending = &side;
  side_pending = true;
  side.reads = std::move(reads);
  for (const Tensor& t : results)
    if (t.defined()) side.results.push_back(t.storage().get());
  return results;
}

void abandon_side() {
  if (!pending) return;
  Side& side = *std::exchange(pending, nullptr);
  side_pending = false;
  side.results.clear();
  side.reads.clear();
  side.frees.release();
}

void join_side() {
  if (!pending) return;
  check(cudaStreamWaitEvent(stream_of(cuda_stream(pending->device)), pending->done, 0),
        "join beside");
  abandon_side();
}

void join_side_for(std::span<const Tensor* const> inputs) {
  if (!pending) return;
  for (const Tensor* t : inputs) {
    if (!t->defined()) continue;
    for (const Storage* result : pending->results)
      if (t->storage().get() == result) return join_side();
  }
}

}  // namespace norma::detail
