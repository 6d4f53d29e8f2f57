#include "norma/core/cuda/graph.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <map>
#include <unordered_map>
#include <vector>

#include "norma/core/cuda/allocator.h"
#include "norma/core/cuda/check.h"
#include "norma/core/cuda/launches.h"
#include "norma/core/cuda/runtime.h"
#include "norma/core/cuda/side_stream.h"
#include "norma/core/error.h"

namespace norma::detail {
namespace {

/// The stream that this thread records on. It has one of its own, since other threads may go on
/// giving work to the device's.
void* recording_stream(Device device) {
  thread_local constinit std::array<void*, 16> streams{};
  void*& stream = streams[device.index];
  if (!stream) {
    cudaStream_t made = nullptr;
    check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "make a stream");
    stream = made;
  }
  return stream;
}

/// A function of the driver, which is not linked.
template <class F>
F* driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  if (cudaGetDriverEntryPointByVersion(name, &function, 12030, cudaEnableDefault, &found) !=
          cudaSuccess ||
      found != cudaDriverEntryPointSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  return reinterpret_cast<F*>(function);
}

/// Kernels of libraries too are known to the driver alone.
std::string kernel_name(cudaGraphNode_t node) {
  static auto* get_params = driver_function<CUresult(CUgraphNode, CUDA_KERNEL_NODE_PARAMS*)>(
      "cuGraphKernelNodeGetParams");
  static auto* function_name = driver_function<CUresult(const char**, CUfunction)>("cuFuncGetName");
  static auto* kernel_name = driver_function<CUresult(const char**, CUkernel)>("cuKernelGetName");
  if (!get_params || !function_name || !kernel_name) return "a kernel";
  CUDA_KERNEL_NODE_PARAMS params{};
  if (get_params(node, &params) != CUDA_SUCCESS) return "a kernel";
  const char* name = nullptr;
  const CUresult found =
      params.func ? function_name(&name, params.func) : kernel_name(&name, params.kern);
  return found == CUDA_SUCCESS && name ? readable_kernel(name) : "a kernel";
}

std::string node_name(cudaGraphNode_t node) {
  cudaGraphNodeType type{};
  check(cudaGraphNodeGetType(node, &type), "read a graph's node");
  switch (type) {
    case cudaGraphNodeTypeKernel:
      return kernel_name(node);
    case cudaGraphNodeTypeMemcpy:
      return "memcpy";
    case cudaGraphNodeTypeMemset:
      return "memset";
    case cudaGraphNodeTypeEmpty:
      return "empty";
    default:
      return format("node of type {}", static_cast<int>(type));
  }
}

}  // namespace

class CudaGraph {
 public:
  explicit CudaGraph(Device on) : device(on), pool(on) {}
  ~CudaGraph() {
    if (executable) cudaGraphExecDestroy(executable);
    if (graph) cudaGraphDestroy(graph);
  }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  Device device;
  MemoryPool pool;  // goes after the graph
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
};

namespace {

/// Throws the record away unless it is finished.
class Recording {
 public:
  explicit Recording(cudaStream_t stream) : stream_(stream) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin to record");
  }
  ~Recording() {
    if (!open_) return;
    cudaGraph_t abandoned = nullptr;
    cudaStreamEndCapture(stream_, &abandoned);
    if (abandoned) cudaGraphDestroy(abandoned);
    cudaGetLastError();
  }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  cudaGraph_t finish() {
    open_ = false;
    cudaGraph_t recorded = nullptr;
    check(cudaStreamEndCapture(stream_, &recorded), "end the record");
    return recorded;
  }

 private:
  cudaStream_t stream_;
  bool open_ = true;
};

}  // namespace

std::shared_ptr<const CudaGraph> record_graph(Device device, const std::function<void()>& work) {
  auto made = std::make_shared<CudaGraph>(device);
  cuda_stream(device);  // makes the device the current one
  const auto stream = static_cast<cudaStream_t>(recording_stream(device));
  {
    const StreamScope on_stream(device, stream);
    const MemoryPool::Scope in_pool(made->pool);
    Recording recording(stream);
    try {
      work();
      join_side();
    } catch (...) {
      abandon_side();
      throw;
    }
    made->graph = recording.finish();
  }
  check(cudaGraphInstantiate(&made->executable, made->graph, 0), "make the graph");
  check(cudaGraphUpload(made->executable, stream_of(cuda_stream(device))), "upload the graph");
  return made;
}

void launch_graph(const CudaGraph& graph) {
  check(cudaGraphLaunch(graph.executable, stream_of(cuda_stream(graph.device))),
        "launch the graph");
}

std::string graph_nodes(const CudaGraph& of) {
  size_t n = 0, n_edges = 0;
  check(cudaGraphGetNodes(of.graph, nullptr, &n), "read the graph");
  std::vector<cudaGraphNode_t> nodes(n);
  check(cudaGraphGetNodes(of.graph, nodes.data(), &n), "read the graph");
  check(cudaGraphGetEdges(of.graph, nullptr, nullptr, nullptr, &n_edges), "read the graph");
  std::vector<cudaGraphNode_t> from(n_edges), to(n_edges);
  std::vector<cudaGraphEdgeData> data(n_edges);
  check(cudaGraphGetEdges(of.graph, from.data(), to.data(), data.data(), &n_edges),
        "read the graph");

  std::map<std::string, int> count;
  for (const cudaGraphNode_t node : nodes) ++count[node_name(node)];

  // The longest path, over nodes in an order in which every edge goes forward.
  std::unordered_map<cudaGraphNode_t, std::vector<cudaGraphNode_t>> next;
  std::unordered_map<cudaGraphNode_t, int> waits, depth;
  int overlapping = 0;
  for (size_t i = 0; i < n_edges; ++i) {
    next[from[i]].push_back(to[i]);
    ++waits[to[i]];
    overlapping += data[i].type == cudaGraphDependencyTypeProgrammatic;
  }
  std::vector<cudaGraphNode_t> ready;
  for (const cudaGraphNode_t node : nodes)
    if (waits[node] == 0) ready.push_back(node);
  int longest = 0;
  while (!ready.empty()) {
    const cudaGraphNode_t node = ready.back();
    ready.pop_back();
    longest = std::max(longest, ++depth[node]);
    for (const cudaGraphNode_t after : next[node]) {
      depth[after] = std::max(depth[after], depth[node]);
      if (--waits[after] == 0) ready.push_back(after);
    }
  }

  std::vector<std::pair<int, std::string>> rows;
  for (const auto& [name, times] : count) rows.emplace_back(-times, name);
  std::sort(rows.begin(), rows.end());
  std::string table =
      format("{} nodes, {} on the longest path, {} of {} edges overlap, {:.1f} MiB\n", n, longest,
             overlapping, n_edges, static_cast<double>(of.pool.reserved()) / (1 << 20));
  for (const auto& [times, name] : rows) table += format("{:>6}  {}\n", -times, name);
  return table;
}

}  // namespace norma::detail
