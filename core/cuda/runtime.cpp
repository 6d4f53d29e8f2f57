#include "norma/core/cuda/runtime.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <set>
#include <string_view>
#include <utility>

#include "norma/core/cuda/check.h"
#include "norma/core/cuda/fault.h"
#include "norma/core/cuda/launches.h"
#include "norma/core/error.h"

namespace norma {
namespace detail {
namespace {

constexpr int kMaxDevices = 16;

/// What one driver call found, once a process.
struct Found {
  int count = 0;
  cudaError_t status = cudaSuccess;
  Found() {
    status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess) count = 0, cudaGetLastError();
    count = std::min(count, kMaxDevices);
  }
};
const Found& found() {
  static const Found once;
  return once;
}

/// One stream a device for all threads: what one thread made another may use without waiting.
cudaStream_t main_stream(int index) {
  static std::array<std::once_flag, kMaxDevices> once;
  static std::array<cudaStream_t, kMaxDevices> streams{};
  const auto i = static_cast<size_t>(index);
  std::call_once(once[i], [&] {
    check(cudaStreamCreateWithFlags(&streams[i], cudaStreamNonBlocking), "make a stream");
  });
  return streams[i];
}

thread_local constinit std::array<void*, kMaxDevices> stream_override{};
thread_local constinit int current_index = -1;

void set_current(Device device) {
  if (current_index == device.index) return;
  check(cudaSetDevice(device.index), "choose the device");
  current_index = device.index;
}

bool synchronizes_launches() {
  static const bool on = [] {
    const char* value = std::getenv("NORMA_CUDA_SYNC");
    return value && std::string_view(value) == "1";
  }();
  return on;
}

std::string name_of(const void* kernel) {
  const char* name = nullptr;
  if (cudaFuncGetName(&name, kernel) != cudaSuccess || !name) return "a kernel";
  return readable_kernel(name);
}

}  // namespace

void check(cudaError_t status, std::string_view what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw CudaError("cuda: {} must succeed, but CUDA says {} ({})", what, cudaGetErrorName(status),
                  cudaGetErrorString(status));
}

void check_launch(cudaError_t status, const void* kernel, cudaStream_t stream) {
  const cudaError_t last = cudaGetLastError();
  if (status == cudaSuccess) status = last;
  if (status == cudaSuccess && synchronizes_launches()) {
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    cudaStreamIsCapturing(stream, &capturing);
    if (capturing == cudaStreamCaptureStatusNone) status = cudaStreamSynchronize(stream);
  }
  if (status != cudaSuccess)
    throw CudaError("{}: the launch must succeed, but CUDA says {} ({})", name_of(kernel),
                    cudaGetErrorName(status), cudaGetErrorString(status));
  if (LaunchListener* listener = launch_listener()) listener->heard(name_of(kernel));
}

void allow_shared_memory(const void* kernel, size_t bytes) {
  static std::mutex mutex;
  static auto* allowed = new std::map<std::pair<int, const void*>, size_t>;
  const std::lock_guard lock(mutex);
  size_t& most = (*allowed)[{current_index, kernel}];
  // The attribute may also lower the limit: never below what needs no permission.
  bytes = std::max(bytes, size_t{48} << 10);
  if (bytes <= most) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        "give " + name_of(kernel) + " " + std::to_string(bytes) + " bytes of shared memory");
  most = bytes;
}

void allow_large_clusters(const void* kernel) {
  static std::mutex mutex;
  static auto* allowed = new std::set<std::pair<int, const void*>>;
  const std::lock_guard lock(mutex);
  if (!allowed->insert({current_index, kernel}).second) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
        "give " + name_of(kernel) + " large clusters");
}

const cudaDeviceProp& properties(Device device) {
  static std::array<std::once_flag, kMaxDevices> once;
  static auto* all = new std::array<cudaDeviceProp, kMaxDevices>;
  const size_t i = device.index;
  std::call_once(once[i], [&] {
    check(cudaGetDeviceProperties(&(*all)[i], device.index), "read the device's properties");
  });
  return (*all)[i];
}

namespace {
std::array<FaultSlot, kMaxDevices> fault_slots;
}
FaultSlot fault_slot(const char* text) {
  static std::array<std::once_flag, kMaxDevices> once;
  const auto i = static_cast<size_t>(current_index);
  std::call_once(once[i], [&] {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    FaultSlot slot;
    void* host = nullptr;
    check(cudaHostAlloc(&host, sizeof(Fault), cudaHostAllocDefault), "allocate pinned memory");
    slot.fault = new (host) Fault;
    check(cudaMalloc(reinterpret_cast<void**>(&slot.taken), sizeof(unsigned)), "allocate memory");
    check(cudaMemset(slot.taken, 0, sizeof(unsigned)), "clear memory");
    cudaThreadExchangeStreamCaptureMode(&mode);
    fault_slots[i] = slot;
  });
  FaultSlot slot = fault_slots[i];
  slot.text = text;
  return slot;
}
void throw_fault() {
  if (current_index < 0) return;
  const FaultSlot& slot = fault_slots[static_cast<size_t>(current_index)];
  if (!slot.fault || !slot.fault->text) return;
  const Fault fault = *slot.fault;
  slot.fault->text = nullptr;
  cudaMemset(slot.taken, 0, sizeof(unsigned));
  throw ValueError(fault.text, fault.values[0], fault.values[1], fault.values[2], fault.values[3]);
}

int cuda_device_count() { return found().count; }

std::string cuda_devices_found() {
  if (found().status == cudaSuccess)
    return found().count == 0
               ? "no GPU was found"
               : format("it has {} GPU{}", found().count, found().count == 1 ? "" : "s");
  return format("CUDA finds none ({})", cudaGetErrorString(found().status));
}

void cuda_synchronize(Device device) {
  check(cudaStreamSynchronize(stream_of(cuda_stream(device))), "wait for the device");
  throw_fault();
}

void cuda_transfer(void* to, Device to_device, const void* from, Device from_device,
                   int64_t bytes) {
  if (bytes == 0) return;
  const Cuda on = cuda_stream(from_device.is_cuda() ? from_device : to_device);
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_of(on)),
        "copy between devices");
  if (!to_device.is_cpu()) return;
  check(cudaStreamSynchronize(stream_of(on)), "copy to the processor");
  throw_fault();
}

std::string cuda_device_name(Device device) { return properties(device).name; }

StreamScope::StreamScope(Device device, void* stream)
    : device_(device), before_(std::exchange(stream_override[device.index], stream)) {}
StreamScope::~StreamScope() { stream_override[device_.index] = before_; }

int cuda_multiprocessors(Device device) { return properties(device).multiProcessorCount; }
bool cuda_is_hopper(Device device) { return properties(device).major == 9; }
int64_t cuda_shared_memory(Device device) {
  return static_cast<int64_t>(properties(device).sharedMemPerBlockOptin);
}

}  // namespace detail

Cuda cuda_stream(Device device) {
  detail::set_current(device);
  void* stream = detail::stream_override[device.index];
  return {stream ? stream : detail::main_stream(device.index), device};
}

}  // namespace norma
