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

/// A thread's streams of a device beside its first. They take turns, so that a short kernel need
/// not wait for a long one.
struct Side {
  struct Stream {
    cudaStream_t stream = nullptr;
    cudaEvent_t done = nullptr;
    bool busy = false;
  };
  Device device;
  std::array<Stream, 2> streams = {};
  size_t turn = 0;
  cudaEvent_t begun = nullptr;
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
    const auto make = [](cudaEvent_t& event) {
      check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "make an event");
    };
    make(side->begun);
    for (Side::Stream& s : side->streams) {
      check(cudaStreamCreateWithFlags(&s.stream, cudaStreamNonBlocking), "make a stream");
      make(s.done);
    }
  }
  return *side;
}

thread_local constinit Side* pending = nullptr;
/// Of the op that runs, if its last kernels may go there, and whether they did.
thread_local constinit Side* aside = nullptr;
thread_local constinit bool went_aside = false;

/// From here on the side may run, beside what the thread's stream is given next.
Cuda begin(Side& side) {
  const Cuda on = cuda_stream(side.device);
  check(cudaEventRecord(side.begun, stream_of(on)), "begin beside");
  side.turn = (side.turn + 1) % side.streams.size();
  Side::Stream& s = side.streams[side.turn];
  s.busy = true;
  check(cudaStreamWaitEvent(s.stream, side.begun, 0), "begin beside");
  return {s.stream, side.device};
}
/// Until a join the results are the side's.
void end(Side& side, std::span<const Tensor> results) {
  const Side::Stream& s = side.streams[side.turn];
  check(cudaEventRecord(s.done, s.stream), "end beside");
  pending = &side;
  side_pending = true;
  for (const Tensor& t : results)
    if (t.defined()) side.results.push_back(t.storage().get());
}

}  // namespace

std::vector<Tensor> run_beside(Device device, std::vector<Tensor> reads,
                               const std::function<std::vector<Tensor>()>& work) {
  if (!sweep_joins()) return work();
  join_side();
  Side& side = side_of(device);
  const Cuda on = begin(side);
  std::vector<Tensor> results;
  {
    const StreamScope beside(device, on.stream);
    const DeferredFrees::Scope until_join(side.frees);
    results = work();
  }
  end(side, results);
  side.reads = std::move(reads);
  return results;
}

void run_with_aside(Device device, std::span<const Tensor> results,
                    const std::function<void()>& work, std::span<const Tensor> reads) {
  if (!sweep_joins() || (pending && pending->device != device)) return work();
  struct Open {
    explicit Open(Side& side) { aside = &side, went_aside = false; }
    ~Open() { aside = nullptr; }
  };
  Side& side = side_of(device);
  {
    const Open open(side);
    const DeferredFrees::Scope until_join(side.frees);
    work();
  }
  if (went_aside) {
    end(side, results);
    side.reads.insert(side.reads.end(), reads.begin(), reads.end());
  } else if (!pending) {
    side.frees.release();
  }
}
bool may_go_aside() { return aside != nullptr; }
Cuda go_aside(const Cuda& on) {
  if (!aside) return on;
  went_aside = true;
  return begin(*aside);
}

void abandon_side() {
  if (!pending) return;
  Side& side = *std::exchange(pending, nullptr);
  side_pending = false;
  for (Side::Stream& s : side.streams) s.busy = false;
  side.results.clear();
  side.reads.clear();
  side.frees.release();
}

void join_side() {
  if (!pending) return;
  for (const Side::Stream& s : pending->streams)
    if (s.busy)
      check(cudaStreamWaitEvent(stream_of(cuda_stream(pending->device)), s.done, 0), "join beside");
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
