#include "norma/core/device.h"

#include <charconv>
#include <string>

#include "norma/core/cuda/runtime.h"
#include "norma/core/error.h"

namespace norma {
namespace {
thread_local constinit Device default_of_thread = cpu;

int gpus() {
  if constexpr (kBuiltWithCuda) return detail::cuda_device_count();
  return 0;
}
}  // namespace

Device Device::best() { return gpus() > 0 ? cuda : cpu; }

std::string to_string(Device device) {
  return device.is_cpu() ? "cpu" : format("cuda:{}", static_cast<int>(device.index));
}

Device device_from_string(std::string_view name) {
  if (name == "best") return Device::best();
  if (name == "cpu") return cpu;
  Device device = cuda;
  if (name.starts_with("cuda:")) {
    const char *number = name.data() + 5, *end = name.data() + name.size();
    const auto [stop, error] = std::from_chars(number, end, device.index);
    if (error != std::errc() || stop != end)
      throw DeviceError("device: N of cuda:N must be 0 to 255, but is {}", name.substr(5));
  } else if (name != "cuda") {
    throw DeviceError("device: must be cpu, cuda, cuda:N or best, but is {}", name);
  }
  require_available(device);
  return device;
}

void require_available(Device device) {
  if (device.is_cpu()) return;
  if constexpr (kBuiltWithCuda) {
    if (device.index < gpus()) return;
    throw DeviceError("{}: must be a device of this machine, but {}; use cpu", to_string(device),
                      detail::cuda_devices_found());
  } else {
    throw DeviceError("{}: must be a device of this build, but it has the CPU only; use cpu",
                      to_string(device));
  }
}

void synchronize(Device device) {
  if (device.is_cpu()) return;
  require_available(device);
  if constexpr (kBuiltWithCuda) detail::cuda_synchronize(device);
}

Device default_device() { return default_of_thread; }
DefaultDevice::DefaultDevice(Device device) : before_(default_of_thread) {
  require_available(device);
  default_of_thread = device;
}
DefaultDevice::~DefaultDevice() { default_of_thread = before_; }

}  // namespace norma
