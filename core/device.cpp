#include "norma/core/device.h"

#include "norma/core/error.h"

namespace norma {

Device Device::best() { return cpu; }

std::string to_string(Device device) {
  return device.is_cpu() ? "cpu" : format("cuda:{}", static_cast<int>(device.index));
}

Device device_from_string(std::string_view name) {
  if (name == "best") return Device::best();
  if (name == "cpu") return cpu;
  if (name == "cuda" || name == "cuda:0") {
    require_available(cuda);
    return cuda;
  }
  throw DeviceError("device: must be cpu, cuda or best, but is {}", name);
}

void require_available(Device device) {
  if (device.is_cuda())
    throw DeviceError("{}: must be a device of this build, but it has the CPU only; use cpu",
                      to_string(device));
}

}  // namespace norma
