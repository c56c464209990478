// Where the work is done: a device, its threads or its stream, and the libraries' handles.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ncollapse/export.hpp"
#include "ncollapse/types.hpp"

namespace ncollapse {

class Backend;

enum class DeviceType { cpu, cuda };

struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;  ///< which GPU; 0 for the CPU

  bool operator==(const Device&) const = default;

  /// The first CUDA device where the library was built for CUDA and one is present, else the CPU.
  NCOLLAPSE_EXPORT static Device best();

  /// "auto", "cpu", "cuda" or "cuda:N". Throws UsageError for anything else; whether the device exists is only
  /// known when a Context opens it.
  NCOLLAPSE_EXPORT static Device parse(std::string_view text);
};

/// "cpu", "cuda:0".
NCOLLAPSE_EXPORT std::string to_string(Device device);

struct DeviceInfo {
  Device device;
  std::string name;        ///< model, as the system names it
  Index memory_bytes = 0;  ///< total memory
  std::string capability;  ///< CUDA compute capability ("9.0"), or the CPU backend's BLAS
  int threads = 1;         ///< CPU threads in use; 1 for a GPU
};

/// The CPU first, then every CUDA device that can be used.
NCOLLAPSE_EXPORT std::vector<DeviceInfo> devices();

/// CUDA devices that are there and cannot be used, a sentence each that says why.
NCOLLAPSE_EXPORT std::vector<std::string> unusable_cuda_devices();

/// Why no CUDA device can be used ("built without CUDA", "no CUDA device is present", ...); empty when one can.
NCOLLAPSE_EXPORT std::string cuda_unavailable_reason();

/// The value of the environment variable OPENBLAS_CORETYPE with which a new process would use what this CPU can do;
/// empty where this process does, or where the variable is set. An OpenBLAS that is older than the CPU may not know it
/// and takes it for one of 2004 ("OpenBLAS Prescott" in DeviceInfo), several times slower; it chooses when it is
/// loaded.
NCOLLAPSE_EXPORT std::string better_blas_kernels();

struct ContextOptions {
  int threads = 0;  ///< CPU threads (on a GPU those that pack host batches), at most 4096; 0 takes what OpenMP would
                    ///< take (OMP_NUM_THREADS, else all cores)
  /// A cudaStream_t of the caller, in whose order all work is done; it has to outlive the context and everything made
  /// with it. Null: an own stream, which orders itself with the legacy default stream (so work queued there before a
  /// call is seen). For per-thread default streams pass cudaStreamPerThread.
  void* cuda_stream = nullptr;
};

/// Opens a device. Cheap to copy: copies share the device's handles. Objects made with one context may be used from
/// several threads at once, each object from one at a time: their calls take turns at what they share (on a GPU all
/// work is in the order of the one stream). For calls that run beside each other give each thread a context of its
/// own, on the CPU with threads = 1. CPU contexts share the process's BLAS, whose number of threads they set while they
/// compute and restore: those that want different numbers take turns, and other work in BLAS meanwhile may see either.
///
/// After fork() a child lacks the threads of its parent: if that had computed on several, calls in the child throw
/// DeviceError where they would need them; a context with threads = 1 works, but for one that a thread was using at the
/// fork. What OpenMP did for the program itself, or for a GPU, is not noticed: then such a call waits for ever. No GPU
/// can be used after a fork. Where a
/// program has the processor take subnormal numbers for zero, on some threads or all, features below 1e-35 may lose
/// digits there.
class NCOLLAPSE_EXPORT Context {
 public:
  /// Throws DeviceError when the device does not exist or the library was built without CUDA, UsageError for a number
  /// of threads below 0 or above 4096, be it OpenMP's own.
  explicit Context(Device device = Device::best(), const ContextOptions& options = {});
  /// For code inside the library and its tests.
  explicit Context(std::shared_ptr<Backend> backend);

  const DeviceInfo& info() const;
  const std::shared_ptr<Backend>& backend() const { return backend_; }

 private:
  std::shared_ptr<Backend> backend_;
};

}  // namespace ncollapse
