// A stand-in for the CUDA runtime, as far as cuda/ uses it, so that the whole backend runs on the host under test: put
// this directory before the CUDA include path and compile the .cu files as C++. Kernels run block by block; inside a
// block every CUDA thread is a fiber of its own, so __syncthreads and the warp exchanges mean what they mean on a GPU,
// and under ThreadSanitizer races between CUDA threads are seen (shim.cpp). The stand-in is stricter than a GPU where
// it can be: fresh memory is poisoned, allocations have guard zones and cannot be touched by host code, copies are
// checked against the allocations, the default stream is refused, blocks come in one order or the other, the lanes of a
// warp have to meet at the same exchange.
//
// What is queued on a stream is done at once, or, to show work that is ordered by luck, as late and in as bad an order
// as the streams and events allow: see Order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __shared__  // dynamic shared memory only: a global array, see shim.cpp
#define __align__(n) __attribute__((aligned(n)))

// ---------------------------------------------------------------- types
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorNotReady = 600
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaDeviceAttr { cudaDevAttrL2CacheSize = 38, cudaDevAttrMemoryPoolsSupported = 115 };
enum cudaMemAllocationType { cudaMemAllocationTypePinned = 1 };
enum cudaMemLocationType { cudaMemLocationTypeDevice = 1 };
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4 };
enum cudaMemoryType { cudaMemoryTypeUnregistered = 0, cudaMemoryTypeHost = 1, cudaMemoryTypeDevice = 2 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0, cudaStreamCaptureStatusActive = 1 };
constexpr unsigned cudaStreamDefault = 0, cudaStreamNonBlocking = 1;
constexpr unsigned cudaEventDisableTiming = 2, cudaHostAllocDefault = 0;

struct CUstream_st;
struct CUevent_st;
struct CUmemPool_st;
struct CUgraph_st;
using cudaStream_t = CUstream_st*;
using cudaEvent_t = CUevent_st*;
using cudaMemPool_t = CUmemPool_st*;
using cudaGraph_t = CUgraph_st*;
using cudaGraphExec_t = CUgraph_st*;

struct cudaMemLocation {
  cudaMemLocationType type;
  int id;
};
struct cudaMemPoolProps {
  cudaMemAllocationType allocType;
  cudaMemLocation location;
};
struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
};
struct cudaDeviceProp {
  char name[256];
  std::size_t totalGlobalMem;
  int major, minor;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned x_size, unsigned y_size = 1, unsigned z_size = 1) : x(x_size), y(y_size), z(z_size) {}
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

// ---------------------------------------------------------------- runtime calls
const char* cudaGetErrorString(cudaError_t status);
const char* cudaGetErrorName(cudaError_t status);
cudaError_t cudaGetLastError();
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
struct cudaFuncAttributes {};
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
  return cudaSuccess;  // the host can run everything
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
/// Nothing captured is done before the graph is launched; then all of it, on that stream, in the order of the capture.
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* props);
cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value);
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, std::size_t keep);
cudaError_t cudaMallocFromPoolAsync(void** memory, std::size_t bytes, cudaMemPool_t pool, cudaStream_t stream);
cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream);
cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes);
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind kind, cudaStream_t stream);
inline cudaError_t cudaProfilerStart() { return cudaSuccess; }
inline cudaError_t cudaProfilerStop() { return cudaSuccess; }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer);

// ---------------------------------------------------------------- inside kernels
constexpr int warpSize = 32;

namespace cuda_shim {

struct ThreadContext {
  dim3 thread, block, block_size, grid_size;
};
const ThreadContext& context();  ///< of the calling CUDA thread
void sync_block();
using Place = std::source_location;  ///< of a call in a kernel
/// Hands `bits` to the warp and returns what lane `from_lane` handed in. All 32 lanes have to take part, there.
std::uint64_t exchange(unsigned mask, std::uint64_t bits, int from_lane, const Place& at);
std::uint32_t ballot(unsigned mask, bool vote, const Place& at);
int lane();

/// A copy to shared memory that a CUDA thread has asked for and not waited for yet.
struct AsyncCopy {
  unsigned char* to;
  const unsigned char* from;
  std::size_t bytes;
  unsigned group;
};
/// Of the calling CUDA thread; a kernel that ends without waiting for its copies fails.
struct AsyncCopies {
  std::vector<AsyncCopy> copies;
  unsigned group = 0;  ///< the one that is not committed yet
};
AsyncCopies& async_copies();

template <class T>
T exchange_value(unsigned mask, T value, int from_lane, const Place& at) {
  static_assert(sizeof(T) <= 8);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(mask, bits, from_lane, at);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// body: one CUDA thread's run of the kernel. CUDA_SHIM_LAUNCHES names a file for the places in the program, as nm
/// gives them, of the kernels that were launched.
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> body);
/// Queues work that touches device memory, of whatever it was given by value.
void submit(cudaStream_t stream, std::function<void()> work);

/// When queued work is done. Everything but at_once is started by a wait of the host (for a stream, an event, a copy to
/// ordinary memory) and ends when that is satisfied.
enum class Order {
  at_once,       ///< in the order of the calls
  needed_only,   ///< only what the wait is for and, by events, what that depends on; nothing else moves
  others_first,  ///< all other streams first, as far as events let them
  random         ///< a stream that can go on, by chance, step by step
};
/// From the environment: CUDA_SHIM_ORDER=needed_only, others_first, or random and a number (the seed).
Order order();

/// While one exists, host code may touch device memory: the vendor stand-ins, copies, kernels.
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
};

/// Ends the process unless [at, at + bytes) lies in one allocation.
void require_device(const void* at, std::size_t bytes);

/// Under CUDA_SHIM_READS (reads.cpp): that queued work reads from, or writes to, memory. Reading device memory that
/// nobody wrote ends the process. What is not device memory does not count.
void reads(const void* at, std::size_t bytes);
void writes(void* at, std::size_t bytes);
/// Of each byte from `at` on, whether it was written to; null for what is not device memory.
unsigned char* written_flags(const void* at, std::size_t bytes);

// What tests may ask.
std::size_t live_allocations();
/// Fails the process when a guard zone was written to.
void check_guards();
/// Device memory beyond this many bytes in use cannot be had.
void set_memory_limit(std::size_t bytes);
/// From now on the host has no pinned memory to give, or has again.
void refuse_pinned_memory(bool refuse);

/// What was asked of the runtime so far, as far as it costs a caller time: device and pinned allocations, waits of the
/// host for the device, copies between the device and ordinary host memory (which wait on a GPU), other copies and
/// memsets, launches, calls of cuBLAS and cuSOLVER.
struct Calls {
  std::size_t allocations = 0, waits = 0, pageable_copies = 0, copies = 0, launches = 0, vendor_calls = 0;
  std::size_t uploaded = 0;  ///< bytes
};
const Calls& calls();
void count_vendor_call();
/// A capture into no graph: the stream that gets work first is captured, and those that wait for its events with it.
/// What a capture forbids ends the process: allocating, freeing, a wait, a query, a copy from ordinary memory, work on a
/// stream that is not part of it, a wait for an event from before it (or later, for one of it), a stream that is not
/// joined in the end. The work itself is done as ever.
void set_capturing(bool capturing);
/// The launch after `others` more is refused. Negative: none is.
void refuse_launch(int others);
/// This device cannot be made the current one; -1: each can.
void silence_device(int device);
/// While the device is slow, no event is found to have happened; waiting for one still works.
void set_slow(bool slow);

}  // namespace cuda_shim

namespace cuda_shim {
template <dim3 ThreadContext::*vector, unsigned dim3::*axis>
struct Coordinate {
  operator unsigned() const { return context().*vector.*axis; }
};
template <dim3 ThreadContext::*vector>
struct Coordinates {
  Coordinate<vector, &dim3::x> x;
  Coordinate<vector, &dim3::y> y;
};
}  // namespace cuda_shim
inline constexpr cuda_shim::Coordinates<&cuda_shim::ThreadContext::thread> threadIdx{};
inline constexpr cuda_shim::Coordinates<&cuda_shim::ThreadContext::block> blockIdx{};
inline constexpr cuda_shim::Coordinates<&cuda_shim::ThreadContext::block_size> blockDim{};
inline constexpr cuda_shim::Coordinates<&cuda_shim::ThreadContext::grid_size> gridDim{};

inline void __syncthreads() { cuda_shim::sync_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu, cuda_shim::Place at = cuda_shim::Place::current()) {
  cuda_shim::ballot(mask, true, at);
}
inline unsigned __ballot_sync(unsigned mask, bool vote, cuda_shim::Place at = cuda_shim::Place::current()) {
  return cuda_shim::ballot(mask, vote, at);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from, cuda_shim::Place at = cuda_shim::Place::current()) {
  return cuda_shim::exchange_value(mask, value, from & 31, at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, cuda_shim::Place at = cuda_shim::Place::current()) {
  return cuda_shim::exchange_value(mask, value, cuda_shim::lane() ^ flip, at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, cuda_shim::Place at = cuda_shim::Place::current()) {
  const int from = cuda_shim::lane() + static_cast<int>(delta);
  return cuda_shim::exchange_value(mask, value, from < warpSize ? from : cuda_shim::lane(), at);
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, cuda_shim::Place at = cuda_shim::Place::current()) {
  unsigned same = 0;
  for (int from = 0; from < warpSize; ++from)
    if (__shfl_sync(mask, value, from, at) == value) same |= 1u << from;
  return same;
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value, cuda_shim::Place at = cuda_shim::Place::current()) {
  for (int step = warpSize / 2; step > 0; step /= 2) value = std::min(value, __shfl_xor_sync(mask, value, step, at));
  return value;
}

template <class T>
T atomicAdd(T* address, T value) {
  static_assert(std::is_integral_v<T>, "no floating-point atomics: their order is not fixed");
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicMin(T* address, T value) {
  static_assert(std::is_integral_v<T>);
  T seen = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (value < seen &&
         !__atomic_compare_exchange_n(address, &seen, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return seen;
}

struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
template <class T>
T __ldcs(const T* address) {
  return *address;
}
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline long long __double_as_longlong(double value) {
  long long bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
// As far off as the GPU's may be.
inline float rsqrtf(float x) { return (1 - 0x1p-22f) / std::sqrt(x); }
inline float __log2f(float x) {
  const float log2 = std::log2(x);
  return log2 - std::max(1.0f, std::abs(log2)) * 0x1p-22f;
}
inline float __fdividef(float x, float y) { return x / y * (1 - 0x1p-23f); }
using std::max;
using std::min;

// ---------------------------------------------------------------- launch
template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  static_assert((sizeof(Params) + ... + 0) <= 4096, "more than a kernel's parameters may take on every GPU");
  static_assert((std::is_trivially_copyable_v<Params> && ...), "parameters go to the device as bytes");
  return cuda_shim::launch(
      *config, reinterpret_cast<const void*>(kernel),
      [kernel, params = std::tuple<Params...>(std::forward<Args>(args)...)] { std::apply(kernel, params); });
}
