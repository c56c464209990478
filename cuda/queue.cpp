#include "cuda/queue.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include "ncollapse/error.hpp"

namespace ncollapse::cuda {
namespace {

constexpr Index kOutgoingBytes = Index{2} << 20, kIncomingBytes = Index{1} << 20;
constexpr Index kBlasWorkspaceBytes = Index{32} << 20;  // what cuBLAS asks for on Hopper; enough elsewhere

Owned<cudaMemPool_t, cudaMemPoolDestroy> make_pool(int device) {
  int supported = 0;
  check(cudaDeviceGetAttribute(&supported, cudaDevAttrMemoryPoolsSupported, device));
  if (!supported) throw DeviceError("the driver of CUDA device " + std::to_string(device) + " has no memory pools");
  cudaMemPoolProps props{};
  props.allocType = cudaMemAllocationTypePinned;
  props.location.type = cudaMemLocationTypeDevice;
  props.location.id = device;
  cudaMemPool_t pool = nullptr;
  check(cudaMemPoolCreate(&pool, &props));
  Owned<cudaMemPool_t, cudaMemPoolDestroy> owned(pool);
  std::uint64_t keep = std::numeric_limits<std::uint64_t>::max();
  check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
  return owned;
}

}  // namespace

Stream::Stream(cudaStream_t borrowed, unsigned flags) : raw_(borrowed) {
  if (borrowed) return;
  check(cudaStreamCreateWithFlags(&raw_, flags));
  own_.reset(raw_);
}

Event::Event() {
  cudaEvent_t raw = nullptr;
  check(cudaEventCreateWithFlags(&raw, cudaEventDisableTiming));
  event_.reset(raw);
}

bool Event::happened() const {
  const cudaError_t status = cudaEventQuery(event_.get());
  if (status == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  check(status);
  return true;
}

Queue::Queue(int device, cudaStream_t borrowed) : device_(device) {
  const DeviceGuard on(device);
  stream_ = std::make_unique<Stream>(borrowed);
  pool_ = make_pool(device);
  outgoing_.emplace(kOutgoingBytes);
  incoming_.emplace(kIncomingBytes);

  cublasHandle_t blas = nullptr;
  check(cublasCreate(&blas));
  blas_.reset(blas);
  check(cublasSetStream(blas, stream()));
  check(cublasSetMathMode(
      blas, static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
  check(cublasSetAtomicsMode(blas, CUBLAS_ATOMICS_NOT_ALLOWED));

  cusolverDnHandle_t solver = nullptr;
  check(cusolverDnCreate(&solver));
  solver_.reset(solver);
  check(cusolverDnSetStream(solver, stream()));
  check(cusolverDnSetDeterministicMode(solver, CUSOLVER_DETERMINISTIC_RESULTS));
  cusolverDnParams_t params = nullptr;
  check(cusolverDnCreateParams(&params));
  solver_params_.reset(params);

  blas_workspace_ = allocate(kBlasWorkspaceBytes);  // the last step that may throw but one, see the handler
  try {
    check(cublasSetWorkspace(blas, blas_workspace_, static_cast<std::size_t>(kBlasWorkspaceBytes)));
  } catch (...) {
    release(blas_workspace_);
    throw;
  }
}

Queue::~Queue() {
  int previous = 0;  // no DeviceGuard: nothing here may throw
  cudaGetDevice(&previous);
  cudaSetDevice(device_);
  cudaStreamSynchronize(stream());
  solver_params_.reset();
  solver_.reset();
  blas_.reset();
  release(blas_workspace_);
  cudaStreamSynchronize(stream());
  pool_.reset();
  stream_.reset();
  cudaSetDevice(previous);
}

void* Queue::allocate(Index bytes) {
  const auto wanted = static_cast<std::size_t>(std::max<Index>(bytes, 1));
  void* memory = nullptr;
  cudaError_t status = cudaMallocFromPoolAsync(&memory, wanted, pool_.get(), stream());
  if (status == cudaErrorMemoryAllocation) {  // what the pool keeps may be in pieces of the wrong sizes
    cudaGetLastError();
    check(cudaStreamSynchronize(stream()));
    check(cudaMemPoolTrimTo(pool_.get(), 0));
    status = cudaMallocFromPoolAsync(&memory, wanted, pool_.get(), stream());
  }
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    std::size_t free_bytes = 0, total_bytes = 0;
    check(cudaMemGetInfo(&free_bytes, &total_bytes));
    throw MemoryError("out of memory on CUDA device " + std::to_string(device_) + ": " + std::to_string(wanted) +
                          " bytes were wanted, " + std::to_string(free_bytes) + " of " + std::to_string(total_bytes) +
                          " are free",
                      "use smaller batches, fewer statistics, or the CPU");
  }
  check(status);
  return memory;
}

void Queue::release(void* memory) noexcept { cudaFreeAsync(memory, stream()); }

void Queue::upload(void* to, const void* host, Index bytes) {
  if (bytes == 0) return;
  const auto size = static_cast<std::size_t>(bytes);
  if (bytes > kOutgoingBytes) {
    check(cudaMemcpyAsync(to, host, size, cudaMemcpyHostToDevice, stream()));
    return wait();
  }
  if (capturing())
    throw UsageError(
        "host values cannot be captured in a CUDA graph: they would be read at replay, from memory that has "
        "other ones by then",
        "do this outside of the capture");
  if (outgoing_used_ + bytes > kOutgoingBytes) wait();
  unsigned char* pinned = outgoing_->get() + outgoing_used_;
  outgoing_used_ += bytes;
  std::memcpy(pinned, host, size);
  check(cudaMemcpyAsync(to, pinned, size, cudaMemcpyHostToDevice, stream()));
}

void Queue::download(void* host, const void* from, Index bytes) {
  if (bytes == 0) return;
  const auto size = static_cast<std::size_t>(bytes);
  if (const void* pinned = fetch(from, bytes)) {
    const struct Release {
      Queue& queue;
      ~Release() { queue.release_fetched(); }
    } release{*this};
    wait();
    std::memcpy(host, pinned, size);
    return;
  }
  check(cudaMemcpyAsync(host, from, size, cudaMemcpyDeviceToHost, stream()));
  wait();
}

const void* Queue::fetch(const void* from, Index bytes) {
  constexpr Index kAlignment = 16;
  const Index begin = (incoming_used_ + kAlignment - 1) / kAlignment * kAlignment;
  if (begin + bytes > kIncomingBytes) return nullptr;
  unsigned char* pinned = incoming_->get() + begin;
  if (bytes > 0)
    check(cudaMemcpyAsync(pinned, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost, stream()));
  incoming_used_ = begin + bytes;
  ++fetches_;
  return pinned;
}

void Queue::release_fetched() noexcept {
  if (--fetches_ == 0) incoming_used_ = 0;
}

void Queue::copy(void* to, const void* from, Index bytes) {
  if (bytes > 0) check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, stream()));
}

void Queue::wait() {
  check(cudaStreamSynchronize(stream()));
  outgoing_used_ = 0;
  ++waits_;
}

bool Queue::capturing() const {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream(), &status));
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace ncollapse::cuda
