// Which CUDA devices there are, and in a user's words why there is none. Never throws for their absence.
#include <string>

#include "cuda/backend.hpp"
#include "cuda/rows.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {

constexpr int kOldestMajor = 7, kOldestMinor = 5;  // Turing: what CUDA 13 still builds for

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

std::string why_none(cudaError_t status) {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (status == cudaErrorInsufficientDriver && driver == 0) return "no NVIDIA driver is installed";
  if (status == cudaErrorInsufficientDriver)
    return "the NVIDIA driver is too old: it serves CUDA " + version(driver) + ", this library needs " +
           version(runtime);
  if (status == cudaErrorNoDevice) return "no CUDA device is present (or CUDA_VISIBLE_DEVICES hides it)";
  return std::string("CUDA does not start: ") + cudaGetErrorString(status);
}

}  // namespace

CudaDevices cuda_devices() {
  CudaDevices devices;
  const auto leave_out = [&](int device, const std::string& because) {
    devices.left_out.push_back({device, "CUDA device " + std::to_string(device) + because});
  };
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    cudaGetLastError();
    devices.none_because = why_none(status == cudaSuccess ? cudaErrorNoDevice : status);
    return devices;
  }
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) {
      cudaGetLastError();
      leave_out(device, " does not answer");
      continue;
    }
    const std::string name = " (" + std::string(properties.name) + ")";
    const std::string capability = std::to_string(properties.major) + "." + std::to_string(properties.minor);
    if (properties.major * 10 + properties.minor < kOldestMajor * 10 + kOldestMinor) {
      leave_out(device, name + " has compute capability " + capability + ", 7.5 is the oldest supported");
      continue;
    }
    if (const cudaError_t answer = cuda::probe(device); answer != cudaSuccess) {
      leave_out(device, name + (answer == cudaErrorNoKernelImageForDevice
                                    ? " has compute capability " + capability +
                                          ", for which this library was not compiled (CMAKE_CUDA_ARCHITECTURES)"
                                    : std::string(" does not answer: ") + cudaGetErrorString(answer)));
      continue;
    }
    DeviceInfo info;
    info.device = {DeviceType::cuda, device};
    info.name = properties.name;
    info.memory_bytes = static_cast<Index>(properties.totalGlobalMem);
    info.capability = capability;
    devices.usable.push_back(info);
  }
  return devices;
}

std::shared_ptr<Backend> open_cuda_backend(int device, const ContextOptions& options) {
  return std::make_shared<cuda::CudaBackend>(device, options);
}

}  // namespace ncollapse
