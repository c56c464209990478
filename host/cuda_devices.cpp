// What there is of CUDA, as told to a user. Apart from context.cpp, so that tests of the CUDA room need no backend but
// it.
#include <string>

#include "host/backend.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

std::string CudaDevices::unavailable_reason() const {
  if (!usable.empty()) return "";
  std::string reason = none_because;
  for (const auto& gpu : left_out) reason += (reason.empty() ? "" : "; ") + gpu.reason;
  return reason;
}

DeviceInfo CudaDevices::at(int index) const {
  std::string others;
  for (const auto& gpu : usable) {
    if (gpu.device.index == index) return gpu;
    others += (others.empty() ? "cuda:" : ", cuda:") + std::to_string(gpu.device.index);
  }
  const std::string hint = std::string("use cpu") + (others.empty() ? ", or auto" : ", or one of " + others);
  for (const auto& gpu : left_out)
    if (gpu.index == index) throw DeviceError(gpu.reason, hint);
  if (usable.empty()) throw DeviceError("no CUDA device can be used: " + unavailable_reason(), hint);
  throw DeviceError("there is no CUDA device " + std::to_string(index), hint);
}

}  // namespace ncollapse
