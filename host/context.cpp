#include "ncollapse/context.hpp"

#include <charconv>

#include "host/backend.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/version.hpp"

namespace ncollapse {

const char* version() { return NCOLLAPSE_VERSION; }

Device Device::best() {
  const auto gpus = cuda_devices().usable;
  return gpus.empty() ? Device{} : gpus.front().device;
}

Device Device::parse(std::string_view text) {
  if (text == "auto") return best();
  if (text == "cpu") return {DeviceType::cpu, 0};
  if (text == "cuda") {  // the first usable one; whether there is any, Context will say
    const auto gpus = cuda_devices().usable;
    return gpus.empty() ? Device{DeviceType::cuda, 0} : gpus.front().device;
  }
  constexpr std::string_view prefix = "cuda:";
  if (text.starts_with(prefix)) {
    const auto number = text.substr(prefix.size());
    int index = 0;
    const auto [end, status] = std::from_chars(number.data(), number.data() + number.size(), index);
    if (status == std::errc{} && end == number.data() + number.size() && index >= 0) return {DeviceType::cuda, index};
  }
  throw UsageError("unknown device '" + std::string(text) + "'", "devices are auto, cpu, cuda and cuda:N");
}

std::string to_string(Device device) {
  return device.type == DeviceType::cpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

std::vector<DeviceInfo> devices() {
  std::vector<DeviceInfo> all{cpu_device(0)};
  for (auto& gpu : cuda_devices().usable) all.push_back(std::move(gpu));
  return all;
}

std::vector<std::string> unusable_cuda_devices() {
  std::vector<std::string> reasons;
  for (auto& gpu : cuda_devices().left_out) reasons.push_back(std::move(gpu.reason));
  return reasons;
}

std::string cuda_unavailable_reason() { return cuda_devices().unavailable_reason(); }

namespace {

// More than any machine has. Far more would be started one by one, and end the process when memory runs out.
constexpr int kMostThreads = 4096;

std::shared_ptr<Backend> open(Device device, const ContextOptions& options) {
  if (options.threads < 0 || options.threads > kMostThreads)
    throw UsageError("threads is " + std::to_string(options.threads) + ", must be 0 to " + std::to_string(kMostThreads),
                     "the default is all cores");
  if (device.type == DeviceType::cpu) {
    const int threads = cpu_device(options.threads).threads;
    if (threads > kMostThreads)
      throw UsageError(
          "OpenMP is set to " + std::to_string(threads) + " threads, must be at most " + std::to_string(kMostThreads),
          "set OMP_NUM_THREADS to the number of cores, or unset it");
    return open_cpu_backend(options);
  }
  return open_cuda_backend(device.index, options);
}

}  // namespace

Context::Context(Device device, const ContextOptions& options) : backend_(open(device, options)) {}
Context::Context(std::shared_ptr<Backend> backend) : backend_(std::move(backend)) {}

const DeviceInfo& Context::info() const { return backend_->info(); }

}  // namespace ncollapse
