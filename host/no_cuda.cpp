// Stands in for cuda/ in a library built without it.
#include "host/backend.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {
constexpr const char* kReason = "this library was built without CUDA";
}

std::vector<DeviceInfo> cuda_devices(std::string* reason) {
  if (reason != nullptr) *reason = kReason;
  return {};
}

std::shared_ptr<Backend> open_cuda_backend(int, const ContextOptions&) {
  throw DeviceError(kReason, "configure with -DNCOLLAPSE_CUDA=ON, or use the device cpu");
}

}  // namespace ncollapse
