#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "norma/core/device.h"

namespace norma::detail {

// What capture asks of CUDA, in plain C++; see core/cuda/runtime.h.

/// Work recorded once and launched as a whole, with the memory that it uses.
class CudaGraph;

/// Runs `work`, whose work on the device is recorded and not done, and whose memory there comes
/// from the graph's own. Only this thread's work: others may go on.
std::shared_ptr<const CudaGraph> record_graph(Device device, const std::function<void()>& work);
/// Gives the work to the thread's stream.
void launch_graph(const CudaGraph& graph);
/// A table: how many nodes there are and on the longest path, the memory that stays reserved, and
/// how many nodes of each kernel.
std::string graph_nodes(const CudaGraph& graph);

/// Writes a few bytes that the host holds, in the order of the thread's stream. They have been read
/// when it returns; `to` is aligned to 16 and has room up to the next multiple of 16.
void cuda_write(void* to, const void* from, size_t bytes, Device device);

/// The pool that this thread allocates from, exchanged for another; null is the general one.
void* exchange_pool(void* pool);

}  // namespace norma::detail
