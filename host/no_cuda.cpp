// Stands in for cuda/ in a library built without it.
#include "host/backend.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {
constexpr const char* kReason = "this library was built without CUDA";
}

CudaDevices cuda_devices() { return {.usable = {}, .left_out = {}, .none_because = kReason}; }

std::shared_ptr<Backend> open_cuda_backend(int, const ContextOptions&) {
  throw DeviceError("no CUDA device can be used: " + std::string(kReason), "use the device cpu or auto");
}

}  // namespace ncollapse
