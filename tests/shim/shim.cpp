// The stand-in's memory and scheduler. Every check failure prints what is wrong and ends the process: a kernel that
// writes outside its memory is not something a test goes on after.
//
// Under ThreadSanitizer (CUDA_SHIM_TSAN) every CUDA thread is a fiber that TSan knows as a thread of its own, switched
// without a happens-before edge; only barriers and warp exchanges make edges. So a missing __syncthreads is a data race
// in the report, just as with one OS thread per CUDA thread, a hundred times faster. This file is then compiled without
// instrumentation: the scheduler's own data is nobody's race.
#include <dlfcn.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/shim/cuda_runtime.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define CUDA_SHIM_ASAN 1
#endif
#ifdef CUDA_SHIM_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace {

struct Line;
/// All of a line's work up to `number`.
struct Point {
  std::shared_ptr<Line> line;
  std::uint64_t number = 0;

  bool reached() const;
};
/// What is queued on a stream.
struct Line {
  struct Item {
    std::function<void()> work;  // empty: waits for the point
    Point point;
  };
  std::deque<Item> items;
  std::uint64_t queued = 0, done = 0;
  bool destroyed = false;                   // the stream, though what was queued on it is still to be done
  bool captured = false;                    // in the capture that is going on
  std::uint64_t last_work = 0, joined = 0;  // in it; joined: what the captured stream has waited for
};
bool Point::reached() const { return !line || line->done >= number; }

}  // namespace

struct CUstream_st {
  int device;
  unsigned flags;
  std::shared_ptr<Line> line;
};
struct CUmemPool_st {
  int device;
};
struct CUevent_st {
  int device;
  Point point;
  std::uint64_t capture = 0;  // in which it was recorded
};
struct CUgraph_st {
  std::vector<std::function<void()>> work;
};

// The block's dynamic shared memory: what cuda/device.hpp declares `extern __shared__`.
namespace ncollapse::cuda {
constexpr std::size_t kMaxSharedBytes = std::size_t{48} << 10;
alignas(4096) extern unsigned char block_shared_bytes[];
alignas(4096) unsigned char block_shared_bytes[kMaxSharedBytes];
}  // namespace ncollapse::cuda

namespace {

using ncollapse::cuda::block_shared_bytes;
using ncollapse::cuda::kMaxSharedBytes;

constexpr int kPoison = 0xff;  // NaN as a double, -1 as an integer
constexpr int kGuard = 0xa5;
constexpr std::size_t kGuardBytes = 256;
constexpr std::size_t kPoisonedBytes = std::size_t{1} << 20;  // the rest of a larger allocation stays untouched
#ifdef CUDA_SHIM_READS
constexpr bool kWatchesReads = true;
#else
constexpr bool kWatchesReads = false;
#endif

std::recursive_mutex mutex;  // of all that follows, as several threads may call CUDA

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "cuda shim: %s\n", what);
  std::abort();
}

// ---------------------------------------------------------------- memory
// An allocation: guard, memory, guard; behind it, where reads are watched, flags for its bytes. Outside kernels, copies
// and vendor calls its pages cannot be touched at all, so that host code reading device memory ends where it would end
// on a machine with a GPU.
struct Allocation {
  std::size_t bytes, mapped;
  unsigned char* base;
  int device;
  bool freed = false;  // by a call whose turn in its stream has not come
};
struct Memory {
  std::map<unsigned char*, Allocation> live;
  std::size_t used = 0, limit = std::size_t{4} << 30;
};
Memory& memory() {
  static Memory instance;
  return instance;
}

void hide([[maybe_unused]] void* at, [[maybe_unused]] std::size_t bytes, [[maybe_unused]] bool hidden) {
#ifdef CUDA_SHIM_ASAN
  if (hidden)
    ASAN_POISON_MEMORY_REGION(at, bytes);
  else
    ASAN_UNPOISON_MEMORY_REGION(at, bytes);
#endif
}

void protect(unsigned char* begin, std::size_t bytes, bool open) {
  if (mprotect(begin, bytes, open ? PROT_READ | PROT_WRITE : PROT_NONE) != 0) fail("mprotect");
}
/// Neighbours at once: a third of the time of some tests went into such calls.
void protect_all(bool open) {
  const auto& live = memory().live;
  for (auto next = live.begin(); next != live.end();) {
    unsigned char *const begin = next->second.base, *end = begin;
    for (; next != live.end() && next->second.base == end; ++next) end += next->second.mapped;
    protect(begin, static_cast<std::size_t>(end - begin), open);
  }
}

void check_guard(const Allocation& allocation) {
  unsigned char* data = allocation.base + kGuardBytes;
  hide(allocation.base, kGuardBytes, false);
  hide(data + allocation.bytes, kGuardBytes, false);
  for (std::size_t i = 0; i < kGuardBytes; ++i) {
    if (allocation.base[i] != kGuard) fail("a write before the start of an allocation");
    if (data[allocation.bytes + i] != kGuard) fail("a write behind the end of an allocation");
  }
  hide(allocation.base, kGuardBytes, true);
  hide(data + allocation.bytes, kGuardBytes, true);
}

int at_work = 0;  // inside queued work, where memory is what the stream's order says

/// The allocation that holds [at, at + bytes), or null when `at` is no device memory at all.
const Allocation* find(const void* at, std::size_t bytes) {
  auto& live = memory().live;
  const auto* address = static_cast<const unsigned char*>(at);
  auto next = live.upper_bound(const_cast<unsigned char*>(address));
  if (next == live.begin()) return nullptr;
  const auto& [data, allocation] = *--next;
  if (address >= data + allocation.bytes + kGuardBytes || (allocation.freed && at_work == 0)) return nullptr;
  if (address + bytes > data + allocation.bytes) fail("an access behind the end of an allocation");
  return &allocation;
}

void require_host(const void* at) {
  if (find(at, 0) != nullptr) fail("device memory where host memory is needed");
}
void require_stream(cudaStream_t stream) {
  if (stream == nullptr) fail("work on the default stream");
}

int opened = 0;  // nested DeviceAccess

bool pinned_refused = false;
std::map<const unsigned char*, std::size_t> pinned;  // host memory that a GPU copies from and to without a wait
cuda_shim::Calls counted;
bool is_capturing = false, is_slow = false;
int launches_until_refusal = -1, silent_device = -1;
std::uint64_t captures = 0;
Line* captured_first = nullptr;
CUgraph_st* recorded = nullptr;  // what captured work becomes part of, instead of being done

void forbid_in_capture(const char* what) {
  if (is_capturing) fail(what);
}
bool is_pinned(const void* at) {
  const auto* address = static_cast<const unsigned char*>(at);
  const auto next = pinned.upper_bound(address);
  if (next == pinned.begin()) return false;
  const auto& [data, bytes] = *std::prev(next);
  return address < data + bytes;
}
void count_copy(const void* host) {
  if (is_pinned(host)) {
    ++counted.copies;
    return;
  }
  forbid_in_capture("a copy between device and ordinary host memory in a capture");
  ++counted.pageable_copies;
}
void count_wait() {
  forbid_in_capture("a wait in a capture");
  ++counted.waits;
}

}  // namespace

using cuda_shim::DeviceAccess;
using cuda_shim::Order;
using cuda_shim::order;
using cuda_shim::require_device;
using cuda_shim::submit;

// ---------------------------------------------------------------- the order of work
namespace {

std::list<std::shared_ptr<Line>> lines;  // of the streams that there are, or that left work
std::mt19937 chance;

/// Does the first item of a line, if it can be done.
bool step(Line& line) {
  if (line.items.empty() || !line.items.front().point.reached()) return false;
  const Line::Item item = std::move(line.items.front());
  line.items.pop_front();
  if (item.work) {
    const DeviceAccess access;
    ++at_work;
    item.work();
    --at_work;
  }
  ++line.done;
  return true;
}

void run_others(const Line* but) {
  for (bool moved = true; moved;) {
    moved = false;
    for (const auto& line : lines)
      if (line.get() != but)
        while (step(*line)) moved = true;
  }
}

void step_by_chance() {
  std::vector<Line*> ready;
  for (const auto& line : lines)
    if (!line->items.empty() && line->items.front().point.reached()) ready.push_back(line.get());
  if (ready.empty()) fail("streams that wait for each other");
  step(*ready[chance() % ready.size()]);
}

void reach(const Point& point) {
  Line& line = *point.line;
  while (!point.reached()) {
    if (order() == Order::random) {
      step_by_chance();
      continue;
    }
    if (order() == Order::others_first) run_others(&line);
    if (!line.items.front().point.reached()) reach(Point(line.items.front().point));
    step(line);
  }
}

void drain(const std::shared_ptr<Line>& line) { reach({line, line->queued}); }
void drain_all() {
  for (const auto& line : lines) drain(line);
}

/// The stream of `line` is given work, or an event to record.
void require_in_capture(Line& line) {
  if (!is_capturing) return;
  if (captured_first == nullptr) {
    captured_first = &line;
    line.captured = true;
  }
  if (!line.captured) fail("work in a capture on a stream that is not part of it");
}

void put(const std::shared_ptr<Line>& line, Line::Item item) {
  ++line->queued;
  line->items.push_back(std::move(item));
  if (order() == Order::at_once) drain(line);
}

}  // namespace

namespace cuda_shim {

Order order() {
  static const Order chosen = [] {
    const char* text = std::getenv("CUDA_SHIM_ORDER");
    const std::string name = text == nullptr ? "" : text;
    if (name.empty()) return Order::at_once;
    if (name == "needed_only") return Order::needed_only;
    if (name == "others_first") return Order::others_first;
    if (name.rfind("random", 0) != 0) fail("CUDA_SHIM_ORDER: needed_only, others_first, random and a number");
    chance.seed(static_cast<unsigned>(std::atoi(name.c_str() + 6)));
    return Order::random;
  }();
  return chosen;
}

void submit(cudaStream_t stream, std::function<void()> work) {
  const std::lock_guard api(mutex);
  require_stream(stream);
  require_in_capture(*stream->line);
  stream->line->last_work = stream->line->queued + 1;
  if (recorded != nullptr) {
    recorded->work.push_back(std::move(work));
    work = [] {};
  }
  put(stream->line, {std::move(work), {}});
}

DeviceAccess::DeviceAccess() {
  mutex.lock();
  if (opened++ == 0) protect_all(true);
}
DeviceAccess::~DeviceAccess() {
  if (--opened == 0) protect_all(false);
  mutex.unlock();
}

void require_device(const void* at, std::size_t bytes) {
  if (bytes > 0 && find(at, bytes) == nullptr) fail("host memory where device memory is needed");
}

unsigned char* written_flags(const void* at, std::size_t bytes) {
  if (!kWatchesReads || opened == 0) return nullptr;
  const Allocation* allocation = find(at, bytes);
  if (allocation == nullptr) return nullptr;
  unsigned char* data = allocation->base + kGuardBytes;
  return data + allocation->bytes + kGuardBytes + (static_cast<const unsigned char*>(at) - data);
}

std::size_t live_allocations() {
  const std::lock_guard api(mutex);
  drain_all();
  return memory().live.size();
}
void check_guards() {
  const std::lock_guard api(mutex);
  drain_all();
  const DeviceAccess access;
  for (const auto& [data, allocation] : memory().live) check_guard(allocation);
}
void set_memory_limit(std::size_t bytes) { memory().limit = bytes; }
void refuse_pinned_memory(bool refuse) { pinned_refused = refuse; }
const Calls& calls() { return counted; }
void count_vendor_call() {
  const std::lock_guard api(mutex);
  ++counted.vendor_calls;
}
void set_capturing(bool capturing) {
  if (is_capturing && !capturing)
    for (const auto& line : lines)
      if (line->captured && line.get() != captured_first && line->last_work > line->joined)
        fail("a stream that is not joined at the end of the capture");
  if (capturing) ++captures;
  captured_first = nullptr;
  for (const auto& line : lines) line->captured = false;
  is_capturing = capturing;
}
void set_slow(bool slow) { is_slow = slow; }
void refuse_launch(int others) { launches_until_refusal = others; }
void silence_device(int device) { silent_device = device; }

}  // namespace cuda_shim

cudaError_t cudaMallocFromPoolAsync(void** result, std::size_t bytes, cudaMemPool_t pool, cudaStream_t stream) {
  const std::lock_guard api(mutex);
  require_stream(stream);
  if (pool == nullptr || bytes == 0) return cudaErrorInvalidValue;
  forbid_in_capture("an allocation in a capture");
  ++counted.allocations;
  auto& state = memory();
  if (bytes > state.limit - std::min(state.used, state.limit)) return cudaErrorMemoryAllocation;
  Allocation allocation{bytes, (bytes + 2 * kGuardBytes + (kWatchesReads ? bytes : 0) + 4095) / 4096 * 4096, nullptr,
                        pool->device};
  void* pages = mmap(nullptr, allocation.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  allocation.base = pages == MAP_FAILED ? nullptr : static_cast<unsigned char*>(pages);
  if (allocation.base == nullptr) return cudaErrorMemoryAllocation;
  unsigned char* data = allocation.base + kGuardBytes;
  std::memset(allocation.base, kGuard, kGuardBytes);
  std::memset(data, kPoison, std::min(bytes, kPoisonedBytes));
  std::memset(data + bytes, kGuard, kGuardBytes);
  hide(allocation.base, kGuardBytes, true);
  hide(data + bytes, kGuardBytes, true);
  if (opened == 0) protect(allocation.base, allocation.mapped, false);
  state.live[data] = allocation;
  state.used += bytes;
  *result = data;
  // Whoever writes to it before its turn in the stream has come loses that.
  if (order() != Order::at_once) submit(stream, [=] { std::memset(data, kPoison, std::min(bytes, kPoisonedBytes)); });
  return cudaSuccess;
}

cudaError_t cudaFreeAsync(void* data, cudaStream_t stream) {
  const std::lock_guard api(mutex);
  require_stream(stream);
  forbid_in_capture("freeing memory in a capture");
  auto& state = memory();
  const auto found = state.live.find(static_cast<unsigned char*>(data));
  if (found == state.live.end() || found->second.freed) fail("freeing what is not allocated");
  found->second.freed = true;
  state.used -= found->second.bytes;
  submit(stream, [found] {
    const Allocation allocation = found->second;
    memory().live.erase(found);
    check_guard(allocation);
    hide(allocation.base, allocation.mapped, false);
    munmap(allocation.base, allocation.mapped);  // a later access ends the process
  });
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes) {
  const std::lock_guard api(mutex);
  *total_bytes = memory().limit;
  *free_bytes = memory().limit - std::min(memory().used, memory().limit);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* at, int value, std::size_t bytes, cudaStream_t stream) {
  const std::lock_guard api(mutex);
  require_stream(stream);
  require_device(at, bytes);
  ++counted.copies;
  submit(stream, [=] {
    std::memset(at, value, bytes);
    cuda_shim::writes(at, bytes);
  });
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}

cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  const std::lock_guard api(mutex);
  require_stream(stream);
  if (width > to_pitch || width > from_pitch) return cudaErrorInvalidValue;
  if (width == 0 || height == 0) return cudaSuccess;
  if (kind == cudaMemcpyDeviceToDevice) ++counted.copies;
  if (kind == cudaMemcpyDeviceToHost) count_copy(to);
  if (kind == cudaMemcpyHostToDevice) {
    count_copy(from);
    counted.uploaded += width * height;
  }
  if (kind == cudaMemcpyDeviceToHost)
    require_host(to);
  else
    require_device(to, to_pitch * (height - 1) + width);
  if (kind == cudaMemcpyHostToDevice)
    require_host(from);
  else
    require_device(from, from_pitch * (height - 1) + width);
  // Ordinary memory has been read when the call returns, pinned memory is read when the copy's turn comes.
  std::shared_ptr<std::vector<char>> staged;
  if (kind == cudaMemcpyHostToDevice && !is_pinned(from)) {
    staged = std::make_shared<std::vector<char>>(width * height);
    for (std::size_t row = 0; row < height; ++row)
      std::memcpy(staged->data() + row * width, static_cast<const char*>(from) + row * from_pitch, width);
    from = staged->data();
    from_pitch = width;
  }
  const bool reads_pinned = kind == cudaMemcpyHostToDevice && !staged,
             writes_pinned = kind == cudaMemcpyDeviceToHost && is_pinned(to);
  submit(stream, [=] {
    if ((reads_pinned && !is_pinned(from)) || (writes_pinned && !is_pinned(to)))
      fail("pinned memory was freed before its copy was done");
    [[maybe_unused]] const auto keep = staged;
    for (std::size_t row = 0; row < height; ++row) {
      cuda_shim::reads(static_cast<const char*>(from) + row * from_pitch, width);
      std::memcpy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
      cuda_shim::writes(static_cast<char*>(to) + row * to_pitch, width);
    }
  });
  if (kind == cudaMemcpyDeviceToHost && !writes_pinned) drain(stream->line);
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const std::lock_guard api(mutex);
  const Allocation* allocation = find(pointer, 0);
  *attributes = {allocation           ? cudaMemoryTypeDevice
                 : is_pinned(pointer) ? cudaMemoryTypeHost
                                      : cudaMemoryTypeUnregistered,
                 allocation ? allocation->device : 0};
  return cudaSuccess;
}

// ---------------------------------------------------------------- devices, streams, pools
namespace {
constexpr int kDevices = 2;           // the second one is there to be left alone
thread_local int current_device = 1;  // not the one that is opened first: a launch without the guard is noticed
}  // namespace

const char* cudaGetErrorString(cudaError_t status) { return status == cudaSuccess ? "no error" : "an error"; }
const char* cudaGetErrorName(cudaError_t status) {
  return status == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorInvalidValue";
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = kDevices;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices || device == silent_device) return cudaErrorInvalidDevice;
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= kDevices) return cudaErrorInvalidDevice;
  *properties = {"host shim", memory().limit, 9, 0};
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrL2CacheSize ? 1 << 20 : 1;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  const std::lock_guard api(mutex);
  *stream = new CUstream_st{current_device, flags, lines.emplace_back(std::make_shared<Line>())};
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard api(mutex);
  stream->line->destroyed = true;  // nobody waits for it: what is queued is done when its turn comes
  lines.remove_if([](const auto& line) { return line->destroyed && line->items.empty(); });
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const std::lock_guard api(mutex);
  require_stream(stream);
  count_wait();
  drain(stream->line);
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const std::lock_guard api(mutex);
  require_stream(stream);
  if (event == nullptr) return cudaErrorInvalidValue;
  Line& line = *stream->line;
  if (!is_capturing && event->capture != 0) fail("a wait for an event that was recorded in a capture");
  if (is_capturing) {
    if (event->capture != captures) fail("a wait in a capture for an event that was not recorded in it");
    if (!line.captured && stream->flags != cudaStreamNonBlocking)
      fail("a stream joins a capture that is tied to the legacy default stream");
    line.captured = true;
    Point& point = event->point;
    if (&line == captured_first) point.line->joined = std::max(point.line->joined, point.number);
  }
  if (event->point.line) put(stream->line, {{}, event->point});
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const std::lock_guard api(mutex);
  require_stream(stream);
  *status = is_capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const std::lock_guard api(mutex);
  require_stream(stream);
  if (is_capturing) fail("a capture in a capture");
  cuda_shim::set_capturing(true);
  require_in_capture(*stream->line);
  recorded = new CUgraph_st;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard api(mutex);
  if (recorded == nullptr || captured_first != stream->line.get())
    fail("the end of a capture that did not begin there");
  cuda_shim::set_capturing(false);
  *graph = std::exchange(recorded, nullptr);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new CUgraph_st(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const std::lock_guard api(mutex);
  forbid_in_capture("the launch of a graph in a capture");
  for (const auto& work : executable->work) submit(stream, work);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  const std::lock_guard api(mutex);
  *event = new CUevent_st{current_device, {}};
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const std::lock_guard api(mutex);
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard api(mutex);
  require_stream(stream);
  if (event->device != stream->device) fail("an event is recorded on a stream of another device");
  require_in_capture(*stream->line);
  event->point = {stream->line, stream->line->queued};
  event->capture = is_capturing ? captures : 0;
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const std::lock_guard api(mutex);
  forbid_in_capture("a query in a capture");
  if (event->capture != 0) fail("a query of an event that was recorded in a capture");
  if (order() == Order::others_first) run_others(nullptr);
  return (is_slow && event->point.line) || !event->point.reached() ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const std::lock_guard api(mutex);
  if (event->capture != 0) fail("a wait for an event that was recorded in a capture");
  if (event->point.line && is_slow) count_wait();
  if (event->point.line) reach(event->point);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory_at, std::size_t bytes, unsigned) {
  const std::lock_guard api(mutex);
  forbid_in_capture("an allocation in a capture");
  ++counted.allocations;
  *memory_at = pinned_refused ? nullptr : std::malloc(bytes);
  if (*memory_at == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*memory_at, kPoison, std::min(bytes, kPoisonedBytes));
  pinned[static_cast<unsigned char*>(*memory_at)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* at) {
  const std::lock_guard api(mutex);
  if (pinned.erase(static_cast<unsigned char*>(at)) != 1) fail("freeing pinned memory that is none");
  std::free(at);
  return cudaSuccess;
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
  const std::lock_guard api(mutex);
  *pool = new CUmemPool_st{current_device};
  return cudaSuccess;
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
  const std::lock_guard api(mutex);
  delete pool;
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, std::size_t) { return cudaSuccess; }

// ---------------------------------------------------------------- scheduler
namespace cuda_shim {
namespace {

constexpr unsigned kMaxThreads = 1024, kMaxWarps = kMaxThreads / 32;

/// What the lanes of a warp hand each other. Two slots in turn: a lane may write to the next slot while another still
/// reads this one, and none can be two exchanges ahead.
struct WarpSlots {
  std::uint64_t bits[2][32];
  unsigned line[2][32];  // where a lane does that
};
WarpSlots slots[kMaxWarps];

void begin_block(std::size_t shared_bytes) {
#ifdef CUDA_SHIM_TSAN  // other memory than that of the block before, which nothing orders before this one
  if (shared_bytes > 0 && mmap(block_shared_bytes, kMaxSharedBytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
    fail("mmap");
#endif
  hide(block_shared_bytes, kMaxSharedBytes, false);
  std::memset(block_shared_bytes, kPoison, shared_bytes);
  std::memset(block_shared_bytes + shared_bytes, kGuard, kMaxSharedBytes - shared_bytes);
  hide(block_shared_bytes + shared_bytes, kMaxSharedBytes - shared_bytes, true);
}
void end_block(std::size_t shared_bytes) {
  hide(block_shared_bytes, kMaxSharedBytes, false);
  const unsigned char* guard = block_shared_bytes + shared_bytes;
  const std::size_t bytes = kMaxSharedBytes - shared_bytes;
  if (bytes > 0 && (*guard != kGuard || std::memcmp(guard, guard + 1, bytes - 1) != 0))
    fail("a write behind the end of the block's shared memory");
}

dim3 block_at(const cudaLaunchConfig_t& config, std::uint64_t number) {
  return dim3(static_cast<unsigned>(number % config.gridDim.x), static_cast<unsigned>(number / config.gridDim.x), 0);
}

void require_valid(const cudaLaunchConfig_t& config) {
  require_stream(config.stream);
  const auto& [grid, block, shared, stream] = config;
  if (stream->device != current_device) fail("a launch while another device is current");
  if (grid.x == 0 || grid.y == 0 || grid.z != 1 || grid.x > 0x7fffffffu || grid.y > 65535) fail("grid size");
  if (block.x == 0 || block.x > kMaxThreads || block.x % 32 != 0 || block.y != 1 || block.z != 1) fail("block size");
  if (shared > kMaxSharedBytes) fail("more than 48 KiB of shared memory");
}

// Every CUDA thread of a block is a fiber; fiber t runs thread t of every block. A fiber runs until its thread has to
// wait or ends. Odd blocks run their threads backwards: code that relies on an order without asking for it is likely to
// show. A fiber is entered by makecontext. After that they switch as nonlocal gotos do, without asking the operating
// system; the compiler's own, since the sanitizers clear what they know of a whole stack at those of the C library.
struct Fiber {
  void* here[5];  // what __builtin_setjmp takes
  ucontext_t machine;
  bool entered = false;
  void* tsan = nullptr;  // TSan's and ASan's view of it
  void* fake_stack = nullptr;
  std::unique_ptr<unsigned char[]> memory;
  const void* stack = nullptr;  // `memory`, or the stack of the OS thread
  std::size_t stack_bytes = 0;
};
enum class State { running, waits_for_warp, waits_for_block, done };
struct Thread {
  ThreadContext context;
  State state = State::done;
  unsigned exchanges = 0, barriers = 0;  // done so far in this block
  AsyncCopies copies;
  Fiber fiber;
};

struct Scheduler {
  std::vector<Thread> threads = std::vector<Thread>(kMaxThreads);
  Fiber main;
  Thread* current = nullptr;
  unsigned size = 0;
  const std::function<void()>* body = nullptr;
};
Scheduler scheduler;

// Happens-before edges, where CUDA promises them: from the launch to every thread, from every thread to the end of the
// launch (two places, or a thread that starts late would learn of one that has ended), and at barriers. Barriers of a
// kind take two places in turn: a thread that is already at the next one must not hand its later accesses to those that
// only now leave this one. Nothing orders one block before another but that a fiber has a thread in each, which at its
// barriers tells others of the block before: a block that needs what another one did is seen where it has no barrier.
char begin_edge, end_edge, block_edges[2], warp_edges[kMaxWarps][2];
void arrive([[maybe_unused]] char& edge) {
#ifdef CUDA_SHIM_TSAN
  __tsan_release(&edge);
#endif
}
void depart([[maybe_unused]] char& edge) {
#ifdef CUDA_SHIM_TSAN
  __tsan_acquire(&edge);
#endif
}

// A function of its own, as __builtin_longjmp needs; AddressSanitizer would clear what it knows of the stack here as
// well.
[[gnu::noinline, gnu::no_sanitize_address]] void go_on_in(Fiber& fiber) {
  if (fiber.entered) __builtin_longjmp(fiber.here, 1);
  fiber.entered = true;
  setcontext(&fiber.machine);
}

[[gnu::noinline]] void switch_to(Fiber& from, Fiber& to) {
#ifdef CUDA_SHIM_TSAN
  __tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef CUDA_SHIM_ASAN
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
#endif
  if (__builtin_setjmp(from.here) == 0) go_on_in(to);
#ifdef CUDA_SHIM_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void fiber_main() {
  Thread& self = *scheduler.current;
#ifdef CUDA_SHIM_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.main.stack, &scheduler.main.stack_bytes);
#endif
  for (;;) {
    depart(begin_edge);
    (*scheduler.body)();
    arrive(end_edge);
    self.state = State::done;
    switch_to(self.fiber, scheduler.main);
  }
}

[[gnu::noinline]] void make_fiber(Fiber& fiber) {
  getcontext(&fiber.machine);
  fiber.stack_bytes = std::size_t{128} << 10;
  fiber.memory = std::make_unique_for_overwrite<unsigned char[]>(fiber.stack_bytes);
  fiber.stack = fiber.memory.get();
  fiber.machine.uc_stack.ss_size = fiber.stack_bytes;
  fiber.machine.uc_stack.ss_sp = fiber.memory.get();
  fiber.machine.uc_link = nullptr;
  makecontext(&fiber.machine, fiber_main, 0);
#ifdef CUDA_SHIM_TSAN
  fiber.tsan = __tsan_create_fiber(0);
#endif
}

void make_fibers() {
  scheduler.main.entered = true;
#ifdef CUDA_SHIM_TSAN
  scheduler.main.tsan = __tsan_get_current_fiber();
#endif
  for (unsigned t = 0; t < scheduler.size; ++t)
    if (Fiber& fiber = scheduler.threads[t].fiber; fiber.stack == nullptr) make_fiber(fiber);
}

void wait_as(State state, char& edge) {
  Thread& self = *scheduler.current;
  self.state = state;
  arrive(edge);
  switch_to(self.fiber, scheduler.main);
  depart(edge);
}
void wait_for_block() { wait_as(State::waits_for_block, block_edges[scheduler.current->barriers++ % 2]); }
void wait_for_warp(unsigned turn) {
  wait_as(State::waits_for_warp, warp_edges[scheduler.current->context.thread.x / 32][turn]);
}

void resume(Thread& thread) {
  thread.state = State::running;
  scheduler.current = &thread;
  switch_to(scheduler.main, thread.fiber);
}

/// True when all of [begin, end) that are not done wait as `state`, and there is one.
bool all_wait(unsigned begin, unsigned end, State state) {
  bool any = false;
  for (unsigned t = begin; t < end; ++t) {
    if (scheduler.threads[t].state == State::done) continue;
    if (scheduler.threads[t].state != state) return false;
    any = true;
  }
  return any;
}

void run_block(bool backwards) {
  auto& s = scheduler;
  const auto resume_range = [&](unsigned begin, unsigned end, bool starting) {
    for (unsigned n = begin; n < end; ++n) {
      Thread& thread = s.threads[backwards ? end - 1 - (n - begin) : n];
      if (starting || thread.state != State::done) resume(thread);
    }
  };
  resume_range(0, s.size, true);
  for (bool moved = true; moved;) {
    moved = false;
    for (unsigned w = 0; w < s.size; w += 32)
      while (all_wait(w, w + 32, State::waits_for_warp)) {
        for (unsigned t = w; t < w + 32; ++t)
          if (s.threads[t].state == State::done) fail("a warp exchange after some lanes have ended");
        resume_range(w, w + 32, false);
        moved = true;
      }
    if (all_wait(0, s.size, State::waits_for_block)) {
      resume_range(0, s.size, false);
      moved = true;
    }
  }
  for (unsigned t = 0; t < s.size; ++t) {
    if (s.threads[t].state != State::done) fail("threads of a block wait for each other at different places");
    if (!s.threads[t].copies.copies.empty()) fail("a kernel ends without waiting for its copies to shared memory");
  }
}

void prepare_threads(const cudaLaunchConfig_t& config, std::uint64_t block) {
  for (unsigned t = 0; t < scheduler.size; ++t) {
    Thread& thread = scheduler.threads[t];
    thread.context = {dim3(t, 0, 0), block_at(config, block), config.blockDim, config.gridDim};
    thread.exchanges = thread.barriers = thread.copies.group = 0;
  }
}

void note_launched(const void* kernel) {
  static const char* path = std::getenv("CUDA_SHIM_LAUNCHES");
  static std::set<const void*> noted;
  if (path == nullptr || !noted.insert(kernel).second) return;
  Dl_info program{};
  dladdr(kernel, &program);
  static std::FILE* file = std::fopen(path, "w");
  if (file == nullptr) fail("CUDA_SHIM_LAUNCHES cannot be written");
  std::fprintf(
      file, "%016zx\n",
      static_cast<std::size_t>(static_cast<const char*>(kernel) - static_cast<const char*>(program.dli_fbase)));
  std::fflush(file);
}

void run_blocks(const cudaLaunchConfig_t& config, const std::function<void()>& body) {
  auto& s = scheduler;
  s.size = config.blockDim.x;
  s.body = &body;
  make_fibers();
  const std::uint64_t blocks = std::uint64_t{config.gridDim.x} * config.gridDim.y;
  // No block may need what another one did: some launches go backwards, in no period that a test could repeat in.
  static unsigned launched = 0;
  const bool backwards = std::popcount(launched++) % 2 == 1;
  for (std::uint64_t turn = 0; turn < blocks; ++turn) {
    const std::uint64_t block = backwards ? blocks - 1 - turn : turn;
    begin_block(config.dynamicSmemBytes);
    prepare_threads(config, block);
    arrive(begin_edge);
    run_block(block % 2 == 1);
    end_block(config.dynamicSmemBytes);
  }
  depart(end_edge);
}

}  // namespace

const ThreadContext& context() { return scheduler.current->context; }
int lane() { return static_cast<int>(scheduler.current->context.thread.x % 32); }
void sync_block() { wait_for_block(); }
AsyncCopies& async_copies() { return scheduler.current->copies; }

namespace {
/// Hands in a lane's bits, and gives those of all.
const std::uint64_t* meet(unsigned mask, std::uint64_t bits, const Place& at) {
  if (mask != 0xffffffffu) fail("a warp exchange without all lanes");
  WarpSlots& warp = slots[context().thread.x / 32];
  const unsigned turn = scheduler.current->exchanges++ % 2;
  warp.bits[turn][lane()] = bits;
  warp.line[turn][lane()] = at.line();
  wait_for_warp(turn);
  if (warp.line[turn][0] != at.line()) fail("lanes of a warp meet at different exchanges");  // every lane asks
  return warp.bits[turn];
}
}  // namespace

std::uint64_t exchange(unsigned mask, std::uint64_t bits, int from_lane, const Place& at) {
  return meet(mask, bits, at)[from_lane];
}

std::uint32_t ballot(unsigned mask, bool vote, const Place& at) {
  const std::uint64_t* all = meet(mask, vote, at);
  std::uint32_t votes = 0;
  for (int from = 0; from < 32; ++from) votes |= static_cast<std::uint32_t>(all[from]) << from;
  return votes;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> body) {
  const std::lock_guard api(mutex);
  require_valid(config);
  if (launches_until_refusal >= 0 && launches_until_refusal-- == 0) return cudaErrorInvalidValue;
  ++counted.launches;
  note_launched(kernel);
  submit(config.stream, [config, body = std::move(body)] { run_blocks(config, body); });
  return cudaSuccess;
}

}  // namespace cuda_shim
