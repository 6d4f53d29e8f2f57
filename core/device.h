#pragma once

#include <cstdint>
#include <iosfwd>  // std::string by name: every kernel's file reads this one
#include <string_view>

namespace norma {

/// Where a tensor's bytes live: the processor, or a GPU by its index.
struct Device {
  enum class Kind : uint8_t { cpu, cuda };
  Kind kind = Kind::cpu;
  uint8_t index = 0;

  /// The first GPU where this build and this machine have one, else the processor.
  static Device best();
  constexpr bool is_cpu() const { return kind == Kind::cpu; }
  constexpr bool is_cuda() const { return kind == Kind::cuda; }
  constexpr bool operator==(const Device&) const = default;
};

inline constexpr Device cpu{Device::Kind::cpu, 0};
inline constexpr Device cuda{Device::Kind::cuda, 0};

std::string to_string(Device device);  ///< "cpu", "cuda:0"
/// "cpu", "cuda", "cuda:1" or "best"; throws DeviceError for another name or an absent device.
Device device_from_string(std::string_view name);
/// Throws DeviceError saying why, where tensors cannot live on `device` (no such GPU, a CPU build).
void require_available(Device device);
/// Waits until all work given to `device` is done.
void synchronize(Device device);

/// Where factories (randn, zeros, from_span, …) put a tensor when they are not told: the processor,
/// or what the innermost DefaultDevice of this thread says. A buffer made by empty() is on the
/// processor unless it is told otherwise, since it is made to be written by hand.
Device default_device();
class DefaultDevice {
 public:
  explicit DefaultDevice(Device device);
  ~DefaultDevice();
  DefaultDevice(const DefaultDevice&) = delete;
  DefaultDevice& operator=(const DefaultDevice&) = delete;

 private:
  Device before_;
};

#ifdef NORMA_CUDA
inline constexpr bool kBuiltWithCuda = true;
#else
inline constexpr bool kBuiltWithCuda = false;
#endif

// Tags that choose a kernel's overload, `run(Cpu, …)` or `run(Cuda, …)`.
struct Cpu {};
struct Cuda {
  void* stream = nullptr;  ///< a cudaStream_t
  Device device = cuda;
};
/// The stream that this thread's work on `device` goes to.
Cuda cuda_stream(Device device);

}  // namespace norma
